"""The files of an export: where they go, what is left next to them, what they give away."""

import multiprocessing
import os
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmseg_repvgg.deploy import write_formats
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.runtimes.torch import TorchRuntime

SIZE = Options(size=(33, 40))
PROJECT = Path(__file__).parents[2]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('out', ['m.pt2', 'sub/m.pt2', './sub/deep/m.pt2'])
def test_a_relative_path(segmentor, tmp_path, monkeypatch, out):
    cfg, _, checkpoint = segmentor
    (tmp_path / 'there').mkdir()
    monkeypatch.chdir(tmp_path / 'there')
    report = export(cfg, checkpoint, out, options=SIZE)
    assert report.path == Path.cwd() / out
    assert names(Path.cwd()) == [os.path.normpath(out), f'{os.path.normpath(out)}.json']
    load_runtime(out)


@pytest.mark.parametrize(
    'out',
    [
        'ü 日本.xml',
        pytest.param('new\nline.mnn', marks=pytest.mark.slow),
        pytest.param('-m.mnn', marks=pytest.mark.slow),
        pytest.param('a.b.c.xml', marks=pytest.mark.slow),
    ],
)
def test_odd_names(segmentor, tmp_path, monkeypatch, out):
    """MNN's converter is a command; OpenVINO's file has a second one by its side."""
    cfg, _, checkpoint = segmentor
    monkeypatch.chdir(tmp_path)
    export(cfg, checkpoint, out, options=SIZE)
    second = [out.replace('.xml', '.bin')] if out.endswith('.xml') else []
    assert names(tmp_path) == sorted([out, f'{out}.json', *second])
    load_runtime(out)


def export_as(cfg, checkpoint, out, side):
    export(cfg, checkpoint, out, options=Options(size=(side, side)))


@pytest.mark.slow
def test_two_processes_export_to_one_name(segmentor, tmp_path):
    """One of them wins; if the files of both mixed, their hashes would say so."""
    cfg, _, checkpoint = segmentor
    out, spawned = tmp_path / 'm.pt2', multiprocessing.get_context('fork')
    for _ in range(2):
        both = [spawned.Process(target=export_as, args=(cfg, checkpoint, out, s)) for s in (33, 40)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        assert names(tmp_path) == ['m.pt2', 'm.pt2.json']
        try:
            side = load_runtime(out).info.size[0]
        except ValueError as error:
            assert 'describes another model' in str(error)
        else:
            assert side in (33, 40)


def other_file_system(tmp_path):
    """A folder on another file system than ``tmp_path``, and how it is taken away."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = 'mount', '-t', 'tmpfs', '-o', 'size=20m', 'none', str(folder)
    if os.name != 'posix' or os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted')
    return folder


def test_another_file_system_and_a_link_to_it(segmentor, tmp_path, monkeypatch):
    cfg, _, checkpoint = segmentor
    disk = other_file_system(tmp_path)
    try:
        monkeypatch.chdir(tmp_path)
        export(cfg, checkpoint, 'disk/m.pt2', options=SIZE)
        assert names(disk) == ['m.pt2', 'm.pt2.json']
        (tmp_path / 'link.pt2').symlink_to(disk / 'far.pt2')
        export(cfg, checkpoint, 'link.pt2', options=SIZE)
        assert (tmp_path / 'link.pt2').is_symlink()
        load_runtime(tmp_path / 'link.pt2')
    finally:
        monkeypatch.undo()
        subprocess.run(['umount', str(disk)], check=True)


@pytest.mark.parametrize('model_format', list(FORMATS))
def test_no_file_holds_paths_of_this_machine(segmentor, tmp_path, model_format):
    cfg, _, checkpoint = segmentor
    folder = tmp_path / 'secret folder'
    export(cfg, checkpoint, folder / f'm{FORMATS[model_format]}', options=SIZE)
    package = Path(torch.__file__).parents[1]
    for file in folder.iterdir():
        content = file.read_bytes()
        for path in (PROJECT, Path.home(), package, tmp_path, Path(checkpoint).parent):
            assert str(path).encode() not in content, (file, path)
        for word in (b'secret folder', b'site-packages', b'mmseg/models', b'Traceback', b'File "'):
            assert word not in content, (file, word)


def test_the_search_for_paths_would_find_them(segmentor, tmp_path, monkeypatch):
    """Negative control: the exporter alone writes where each operator came from."""
    cfg, _, checkpoint = segmentor
    program = {}
    monkeypatch.setitem(write_formats.WRITERS, 'torch', lambda p, path, name: program.update(p=p))
    with pytest.raises(FileNotFoundError):
        export(cfg, checkpoint, tmp_path / 'm.pt2', options=SIZE)
    torch.onnx.export(program['p'], dynamo=True, verbose=False).save(tmp_path / 'm.onnx')
    assert b'File "' in (tmp_path / 'm.onnx').read_bytes()


@pytest.mark.slow
def test_weights_in_files_of_their_own(segmentor, tmp_path, monkeypatch):
    """As past 2 GB; other formats come by way of ONNX, and smaller models later."""
    cfg, _, checkpoint = segmentor
    monkeypatch.setattr(write_formats, 'LARGEST_FILE', 1000)
    export(cfg, checkpoint, tmp_path / 'b.xml', options=SIZE)
    export(cfg, checkpoint, tmp_path / 'b.mnn', options=SIZE)
    assert names(tmp_path) == ['b.bin', 'b.mnn', 'b.mnn.json', 'b.xml', 'b.xml.json']
    large = export(cfg, checkpoint, tmp_path / 'm.onnx', options=SIZE)
    with_data = ['m.onnx', 'm.onnx.data', 'm.onnx.json']
    assert names(tmp_path)[-3:] == with_data
    load_runtime(large.path)
    monkeypatch.undo()
    export(cfg, checkpoint, tmp_path / 'm.onnx', options=SIZE)
    assert names(tmp_path)[-2:] == ['m.onnx', 'm.onnx.json']


def test_constants_of_a_pt2_move_with_the_model(segmentor, tmp_path):
    """To the meta device, which every machine has."""
    cfg, _, checkpoint = segmentor
    path = export(cfg, checkpoint, tmp_path / 'm.pt2', options=SIZE).path
    module = TorchRuntime(path, ModelDescription.read(path), device='meta').module
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {'meta'}
    assert module(torch.zeros(1, 3, 33, 40, device='meta')).shape == (1, 19, 33, 40)


def test_a_config_whose_data_preprocessor_is_at_the_top(segmentor, tmp_path):
    cfg = Config(segmentor[0].to_dict())
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    info = export(cfg, segmentor[2], tmp_path / 'm.pt2', options=SIZE).info
    assert info.mean == pytest.approx((123.675, 116.28, 103.53))
