"""Speed and size of int8 files, compared with float32 in the same runtime, with random weights.

Commands, for each config: python -m tests.deploy.quantize.speed CONFIG FOLDER --images SCENES
and then, alone on the machine: python -m tests.deploy.quantize.speed CONFIG FOLDER

The first writes the files, calibrated on images of the folder SCENES; they are not compared with
PyTorch, because random weights classify nothing. The second times them in turn, and PyTorch with
all rewrites, each in a process of its own.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from mmseg_repvgg.analysis.time_in_turn import paired_ratio
from mmseg_repvgg.benchmark.candidate import NETWORKS, Built, Candidate
from mmseg_repvgg.benchmark.networks import calibrated_segmentor
from mmseg_repvgg.benchmark.protocol import Protocol, measure
from mmseg_repvgg.checkpoint.writing import write_checkpoint
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import weight_files
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.quantize.quality import Expected
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.engine.launch import load_config

SIZE = (713, 713)
RUNTIMES = {'onnxruntime': '.onnx', 'openvino': '.xml', 'torch': '.pt2'}
REWRITES = ['branches', 'batchnorm', 'dilation', 'pyramid', 'winograd']


def write_files(config, folder, images, runtimes):
    """Write fp32 and int8 files of a network with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / 'random.pth'
    write_checkpoint(dict(state_dict=calibrated_segmentor(config, SIZE).state_dict()), checkpoint)
    int8 = Int8Options(calibration=str(images), images=2, check_images=1, equalize=False)
    options = Options(SIZE)
    unchecked = mock.patch('mmseg_repvgg.deploy.export.verify', lambda *_, **__: [])
    with unchecked, mock.patch.object(Expected, 'compare', lambda *_: []):
        for suffix in map(RUNTIMES.__getitem__, runtimes):
            for name, chosen in (('fp32', options), ('int8', replace(options, int8=int8))):
                out = folder / f'{name}{suffix}'
                cfg = load_config(config)
                cfg.model.pop('auxiliary_head', None)
                print(export(cfg, checkpoint, out, options=chosen), flush=True)


def exported(path, runtime, threads):
    """A builder for the benchmark: an exported file on one random image."""
    network = load_runtime(path, runtime, threads)
    images = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)
    return Built(lambda: network(images))


def time_files(config, folder, protocol, runtimes):
    """Time the files of a folder in turn, and print ratios with their 95 % intervals."""
    here = 'tests.deploy.quantize.speed:exported'
    candidates = [
        Candidate(
            f'{runtime} {name}',
            here,
            dict(
                path=str(folder / f'{name}{RUNTIMES[runtime]}'),
                runtime=runtime,
                threads=protocol.threads,
            ),
        )
        for runtime in runtimes
        for name in ('fp32', 'int8')
    ]
    settings = dict(config=config, rewrites=REWRITES, runtime='pytorch', size=list(SIZE))
    candidates.append(Candidate('pytorch', f'{NETWORKS}:segmentor', settings))
    rows = {o.row.name: o.row for o in measure(candidates, protocol, print)}
    for name, row in rows.items():
        times = row.failure or f'median {statistics.median(row.seconds):.3f} s'
        print(f'{name}: {times}; {[round(s, 3) for s in row.seconds]}')
    for runtime in runtimes:
        suffix = RUNTIMES[runtime]
        slow, fast = (rows[f'{runtime} {name}'].seconds for name in ('fp32', 'int8'))
        files = [folder / f'{name}{suffix}' for name in ('int8', 'fp32')]
        sizes = [
            sum(f.stat().st_size for f in (file, *weight_files(file)) if f.is_file())
            for file in files
        ]
        share = sizes[0] / sizes[1]
        print(f'{runtime}: {paired_ratio(slow, fast)} times as fast, {share:.3f} of the size')
        against = paired_ratio(rows['pytorch'].seconds, fast)
        print(f'{runtime} int8: {against} times as fast as PyTorch with all rewrites')


def main():
    """Parse the arguments; write the files, or time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('folder', type=Path)
    parser.add_argument('--images', type=Path, help='write the files')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    if args.images:
        torch.manual_seed(0)
        write_files(args.config, args.folder, args.images, args.runtimes)
    else:
        protocol = Protocol(rounds=args.rounds, warm_up=1, threads=args.threads)
        time_files(args.config, args.folder, protocol, args.runtimes)


if __name__ == '__main__':
    main()
