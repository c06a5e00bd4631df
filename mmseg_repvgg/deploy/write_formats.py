"""Write a traced graph as an ONNX, OpenVINO, MNN or PyTorch file."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from mmseg_repvgg.deploy.export_graph import INPUT
from mmseg_repvgg.deploy.model_description import weight_files

OPSET = 18
"""PyTorch's exporter writes it without conversion; all runtimes here and TensorRT read it."""

LARGEST_FILE = 2**31 - 2**24
"""Largest size of the weights in an ONNX file, in bytes: protobuf's limit less the graph."""


def write_onnx(program: ExportedProgram, path: Path, output: str) -> None:
    """Write ONNX with the weights in the same file (above 2 GB in ``<path>.data``)."""
    _require('onnx', 'onnxscript')
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')  # the exporter's own warnings
        written = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert written is not None
        for node in written.model.graph.all_nodes():
            node.metadata_props.clear()  # the exporter's notes, with paths of this machine
        written.save(path, external_data=size > LARGEST_FILE)


def write_openvino(program: ExportedProgram, path: Path, output: str) -> None:
    """Write OpenVINO's .xml and .bin in fp32, via ONNX."""
    _require('openvino')
    import openvino
    from openvino.passes import ConstantFolding, Manager

    with _temporary_onnx(program, path, output) as source:
        # convert_model would report its use over the network
        model = openvino.Core().read_model(str(source))
        manager = Manager()
        # biases are read as expressions of the shape; NNCF finds only constant ones
        manager.register_pass(ConstantFolding())
        manager.run_passes(model)
        openvino.save_model(model, str(path), compress_to_fp16=False)
        del model  # it keeps the file mapped


def write_mnn(program: ExportedProgram, path: Path, output: str) -> None:
    """Write MNN in fp32, via ONNX.

    Raises:
        RuntimeError: If MNN's converter fails; holds its output.
    """
    _require('MNN')
    with _temporary_onnx(program, path, output) as source:
        mnn_convert('ONNX', source, path)


def mnn_convert(source_format: str, source: Path, out: Path, *options: str) -> None:
    """Run MNN's converter.

    Args:
        source_format: ``'ONNX'`` or ``'MNN'``.
        source: The file to convert.
        out: The file to write, in MNN's format.
        *options: Of the converter, such as ``--fp16``.

    Raises:
        RuntimeError: If it fails; holds its output.
    """
    # It runs in its own process, because it prints and may abort. The script mnnconvert would
    # install packages with pip and report its use over the network.
    code = 'import sys, _tools; _tools.mnnconvert(sys.argv)'
    files = ['--modelFile', os.path.relpath(source, out.parent), '--MNNModel', out.name]
    done = subprocess.run(
        [
            *(sys.executable, '-c', code, '-f', source_format),
            *(*files, '--bizCode', 'mmseg_repvgg', *options),
        ],
        cwd=out.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode or not out.is_file():
        raise RuntimeError(f'MNN cannot convert the network: {(done.stdout + done.stderr)[-2000:]}')


def write_torch(program: ExportedProgram, path: Path, output: str) -> None:
    """Write a program of ``torch.export``; its output has no name."""
    for node in program.graph.nodes:
        for note in ('stack_trace', 'nn_module_stack', 'source_fn_stack'):  # paths of this machine
            node.meta.pop(note, None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.export.save(program, path)


WRITERS: dict[str, Callable[[ExportedProgram, Path, str], None]] = {
    'onnx': write_onnx,
    'openvino': write_openvino,
    'mnn': write_mnn,
    'torch': write_torch,
}
"""By format: a function that writes a graph to a path with a name for the output."""


@contextlib.contextmanager
def _temporary_onnx(program: ExportedProgram, path: Path, output: str) -> Iterator[Path]:
    """Write ONNX next to ``path``, to be converted, and delete it afterwards."""
    source = path.with_suffix('.onnx')
    try:
        write_onnx(program, source, output)
        yield source
    finally:
        for file in (source, *weight_files(source)):
            file.unlink(missing_ok=True)


def _require(*packages: str) -> None:
    lacking = [package for package in packages if find_spec(package) is None]
    if lacking:
        raise RuntimeError(
            f'this format needs {" and ".join(lacking)}: pip install '
            "'mmseg-repvgg[deploy]', or that package alone (python -m mmseg_repvgg.doctor says "
            'what is installed)'
        )
