"""tools/deploy_fuse.py and tools/export.py, killed or out of space: what is there is complete."""

import json
import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_repvgg.atomic_files import sweep
from mmseg_repvgg.checkpoint.reading import read_checkpoint
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.model_description import description_path
from tests import processes
from tests.killing import Phase, die_at_line, half_writes, kill_in_phase

PHASE = Phase()
WRITING = 'mmseg_repvgg/atomic_files.py', '/killing.py'


def deploy(cfg: Config, checkpoint: Path, out: Path, die: int | None = None) -> None:
    if die is not None:
        half_writes()
        die_at_line(die, WRITING)
    fuse_checkpoint(cfg, checkpoint, out, num_images=0)


def export_onnx(cfg: Config, checkpoint: Path, out: Path, size: int = 64) -> None:
    export(cfg, checkpoint, out, options=Options(size=(size, size)))


def assert_fused_whole(out: Path) -> None:
    assert 'state_dict' in read_checkpoint(out)
    assert Config.fromfile(out.with_suffix('.py')).model.type == 'DeployedModel'


def test_deploy_fuse_killed_at_lines_of_writing(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    out = tmp_path / 'fused.pth'
    killed, line, existed = 0, 1, False
    while (code := processes.run(deploy, cfg, checkpoint, out, line)) != 0:
        assert code == -signal.SIGKILL
        killed, line = killed + 1, line + 12
        if out.exists():
            assert 'state_dict' in read_checkpoint(out)
        if out.with_suffix('.py').exists():
            assert_fused_whole(out)
        existed |= out.exists()
    assert killed >= 2
    assert existed
    assert_fused_whole(out)


@pytest.mark.slow
def test_deploy_fuse_killed_at_random_moments(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    out, draw = tmp_path / 'fused.pth', random.Random(0)
    died = Counter()
    while died['start'] < 40:
        died[kill_in_phase('start', 1.0, draw, PHASE, deploy, cfg, checkpoint, out)] += 1
        if out.exists():
            assert 'state_dict' in read_checkpoint(out)
            if out.with_suffix('.py').exists():
                assert_fused_whole(out)
    print(f'survived kills of deploy_fuse: {dict(died)}')


@pytest.mark.slow
def test_export_killed_at_random_moments(segmentor, tmp_path):
    """What is there is complete, and description and model belong together."""
    onnx = pytest.importorskip('onnx')
    cfg, _, checkpoint = segmentor
    out, draw = tmp_path / 'model.onnx', random.Random(0)
    log = tmp_path / 'log'
    assert processes.run(export_onnx, cfg, checkpoint, out, 64, output=log) == 0, log.read_text()
    died, sizes = Counter(), set()
    while died['start'] < 30:
        size = 96 if died['start'] % 2 else 64
        phase = kill_in_phase('start', 12.0, draw, PHASE, export_onnx, cfg, checkpoint, out, size)
        died[phase] += 1
        info = json.loads(description_path(out).read_text())
        if out.exists():
            model = onnx.load(out)
            onnx.checker.check_model(model)
            dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
            assert dims[2:] == info['size']
            sizes.add(info['size'][0])
    print(f'survived kills of export: {dict(died)}')
    assert processes.run(export_onnx, cfg, checkpoint, out, 64) == 0
    sweep(tmp_path, age=0)
    assert {file.name for file in tmp_path.iterdir()} == {
        'model.onnx',
        description_path(out).name,
        'log',
    }


@pytest.mark.slow
def test_deploy_fuse_and_export_on_a_full_disk(segmentor, tmp_path):
    """A file system of 200 kB, as root; the old files stay."""
    cfg, _, checkpoint = segmentor
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = 'mount', '-t', 'tmpfs', '-o', 'size=200k', 'none', str(disk)
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted')
    try:
        for call, out in ((deploy, disk / 'fused.pth'), (export_onnx, disk / 'model.onnx')):
            out.write_bytes(b'old')
            log = tmp_path / f'log {out.name}'
            assert processes.run(call, cfg, checkpoint, out, output=log) == 1
            assert 'No space left on device' in log.read_text()
            assert out.read_bytes() == b'old'
            assert [file.name for file in disk.iterdir()] == [out.name]
            out.unlink()
    finally:
        subprocess.run(['umount', str(disk)], check=True)
