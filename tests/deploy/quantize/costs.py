"""What int8 costs a trained network: every setting, and channels rescaled so that int8 collapses.

Command: python -m tests.deploy.quantize.costs CONFIG CHECKPOINT FOLDER --size H W

FOLDER gets costs.jsonl, a line per setting, and costs.md, the table. Settings that have a line
are not measured again.
"""

import argparse
import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

from mmengine.config import DictAction

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.quantize import openvino_nncf
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.engine.launch import load_config
from mmseg_repvgg.markdown import markdown_table
from tests.deploy.quantize.collapse import write_networks

FORMATS = {'.onnx': 'ONNX', '.xml': 'OpenVINO'}
PLAIN, CURED = dict(equalize=False), dict(equalize=True)
UNCORRECTED = 'without correction of biases'
FAST = 'with the faster correction of biases'
ROUNDED = 'logits resized in int8'
SETTINGS = {
    'min-max': ('fused', PLAIN),
    'equalized if that helps': ('fused', CURED),
    'rescaled at random': ('rescaled', PLAIN),
    'rescaled, equalized': ('rescaled', CURED),
    'percentile': ('fused', dict(PLAIN, calibrator='percentile')),
    'entropy': ('fused', dict(PLAIN, calibrator='entropy')),
    **{
        f'{count} layers in float': ('fused', dict(PLAIN, keep_float=count))
        for count in (1, 2, 4, 8)
    },
    '7 bits': ('fused', dict(PLAIN, weight_bits=7)),
    UNCORRECTED: ('fused', PLAIN),
    FAST: ('fused', PLAIN),
    ROUNDED: ('fused', PLAIN),
}
ONLY = {'entropy': '.onnx', UNCORRECTED: '.xml', FAST: '.xml', ROUNDED: '.xml'}
"""Settings of one format."""


def measure(cfg, checkpoints, folder, options, images, check_images, only):
    """Export every setting in every format, and write a line for each."""
    lines = folder / 'costs.jsonl'
    done = read(lines)
    for per_tensor in (False, True):
        for name, (network, chosen) in SETTINGS.items():
            if only and name not in only:
                continue
            for suffix, kind in FORMATS.items():
                key = [name, per_tensor, kind]
                if any(line['key'] == key for line in done):
                    continue
                if ONLY.get(name, suffix) != suffix:
                    continue
                int8 = Int8Options(
                    images=images,
                    check_images=check_images,
                    agreement=0,
                    miou_drop=100,
                    per_tensor=per_tensor,
                    **chosen,
                )
                out = folder / f'int8{suffix}'
                with changed(name):
                    report = export(
                        cfg.copy(), checkpoints[network], out, options=Options(options, int8=int8)
                    )
                record = dict(
                    key=key,
                    equalized=report.info.quantization['equalized'],
                    simulated=report.info.quantization['simulated'],
                    in_float=report.info.quantization['in_float'],
                    quality=report.info.quantization['quality'],
                )
                print(json.dumps(record), flush=True)
                with lines.open('a', encoding='utf-8') as file:
                    file.write(json.dumps(record) + '\n')
    return read(lines)


def changed(name):
    """Let NNCF quantize otherwise, for a setting that is not an option."""
    if name == ROUNDED:
        return mock.patch.object(openvino_nncf, 'IN_FLOAT', ())
    return {UNCORRECTED: uncorrected, FAST: corrected_fast}.get(name, nullcontext)()


def corrected_fast():
    """Let NNCF correct each bias as if the other layers were in float."""
    nncf = openvino_nncf._import_nncf()
    given = nncf.quantize

    def quantize(*args, **options):
        return given(*args, **dict(options, fast_bias_correction=True))

    return mock.patch.object(nncf, 'quantize', quantize)


@contextmanager
def uncorrected():
    """Let NNCF leave biases as they are."""
    given = openvino_nncf._parameters

    def parameters(options):
        return replace(given(options), disable_bias_correction=True)

    with mock.patch.object(openvino_nncf, '_parameters', parameters):
        yield


def read(lines):
    """The records of a file; none if it is not there."""
    text = lines.read_text(encoding='utf-8') if lines.is_file() else ''
    return [json.loads(line) for line in text.splitlines()]


def table(records):
    """Changed pixels and mIoU, in percent, of each file in the runtime of its quantizer."""
    kinds = [(tensor, kind) for tensor in (False, True) for kind in FORMATS.values()]
    titles = [f'{kind}, per {"tensor" if tensor else "channel"}' for tensor, kind in kinds]
    rows = []
    for name in dict.fromkeys(record['key'][0] for record in records):
        cells = []
        for tensor, kind in kinds:
            found = [r for r in records if r['key'] == [name, tensor, kind]]
            runtime = 'onnxruntime' if kind == 'ONNX' else 'openvino'
            cell = None
            for record in found:
                quality = record['quality'][runtime]
                cell = f'{100 - 100 * quality["agreement"]:.2f}, {quality["miou"]:.2f}'
                if record['simulated']:
                    cell += f' ({record["equalized"]})'
            cells.append(cell)
        rows.append([name, *cells])
    return markdown_table(['setting', *titles], rows)


def main():
    """Parse the arguments, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--size', type=int, nargs=2, required=True)
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--check-images', type=int, default=40)
    parser.add_argument('--only', nargs='+', choices=SETTINGS, help='these settings')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    cfg = load_config(args.config, args.cfg_options)
    cfg, checkpoints = write_networks(cfg, args.checkpoint, args.folder)
    records = measure(
        cfg,
        checkpoints,
        args.folder,
        tuple(args.size),
        args.images,
        args.check_images,
        args.only,
    )
    float32 = records[0]['quality']['onnxruntime']['miou_float32']
    text = f'float32: mIoU {float32:.2f}\n\n{table(records)}\n'
    (args.folder / 'costs.md').write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
