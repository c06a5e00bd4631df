"""The tools as a user calls them: from a foreign folder, by the command line."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
DEMO = PROJECT / 'configs' / 'demo_pspnet_repvgg_a0.py'
RUNTIME = PROJECT / 'configs' / '_base_' / 'default_runtime.py'
CLASSIFIER = PROJECT / 'configs' / 'imagenet' / 'repvgg_a0_120e.py'

# A0 at 512x256 takes minutes; nothing but sizes is changed
SMALL = [
    'train_dataloader.batch_size=2',
    'model.data_preprocessor.size=(65,65)',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=1',
    *(
        f'{split}_dataloader.{setting}'
        for split in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False')
    ),
]


def call(name, *args, cwd, code=0):
    """Run a tool; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / 'tools' / name), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def call_here(name, *args, cwd, code, monkeypatch, capfd):
    """Run a tool that fails, in this process, which is much faster; return what it printed."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / 'tools' / name), run_name='__main__')
    said = ended.value.code  # Python prints a text, and exits with 1
    assert (1 if isinstance(said, str) else said) == code
    return f'{said}\n' + ''.join(capfd.readouterr())


def metrics(work_dir):
    (path,) = Path(work_dir).glob('*/*.json')
    return json.loads(path.read_text())


def options(scenes):
    roots = [f'{s}_dataloader.dataset.data_root={scenes}' for s in ('train', 'val', 'test')]
    return ['--cfg-options', *roots, *SMALL]


@pytest.mark.slow
def test_train_resume_fuse_export_and_test_from_a_foreign_folder(
    scenes, tmp_path, monkeypatch, capfd
):
    small = options(scenes)
    log = call('train.py', DEMO, '--work-dir', 'work', *small, cwd=tmp_path)
    assert 'Evaluating the deployed form: 22 blocks, 6 conv-BN pairs' in log
    assert (tmp_path / 'work' / 'iter_2.pth').is_file()
    more = [*small, 'train_cfg.max_iters=3']
    log = call('train.py', DEMO, '--work-dir', 'work', '--resume', *more, cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in log

    log = call('deploy_fuse.py', DEMO, 'work/iter_3.pth', 'fused.pth', *small, cwd=tmp_path)
    assert 'fused: 22 blocks, 6 conv-BN pairs' in log
    assert 'argmax agreement 100.0000 %' in log
    unfused = [*small, 'custom_hooks=[]']
    call('test.py', DEMO, 'work/iter_3.pth', '--work-dir', 'a', *unfused, cwd=tmp_path)
    painted = ['--out', 'maps', '--show-dir', 'painted']
    call('test.py', 'fused.py', 'fused.pth', '--work-dir', 'b', *painted, cwd=tmp_path)
    assert metrics(tmp_path / 'a')['mIoU'] == metrics(tmp_path / 'b')['mIoU'] > 0
    assert len(list((tmp_path / 'maps').glob('*.png'))) == 3
    assert len(list((tmp_path / 'painted').glob('*.png'))) == 3

    export = ['fused.pth', 'model.onnx', '--size', 256, 512]
    log = call('export.py', 'fused.py', *export, cwd=tmp_path)
    assert 'rewrites: none besides those of the checkpoint' in log
    assert 'onnxruntime on the first test image, 256x512: logits differ by' in log
    assert 'openvino on the first test image, 129x257: logits differ by' in log
    runtime = ['model.onnx', '--runtime', 'onnxruntime', '--work-dir', 'c']
    call('test.py', 'fused.py', *runtime, cwd=tmp_path)
    assert abs(metrics(tmp_path / 'c')['mIoU'] - metrics(tmp_path / 'b')['mIoU']) < 0.05

    # a second fusing is refused, in one line, with the exit code saying so
    here = dict(cwd=tmp_path, code=1, monkeypatch=monkeypatch, capfd=capfd)
    log = call_here('deploy_fuse.py', 'fused.py', 'fused.pth', 'again.pth', **here)
    assert 'deploy_fuse: error: fused.pth is fused already' in log
    assert not (tmp_path / 'again.pth').exists()
    # nor are fused weights evaluated in a training config, where most would be left out
    log = call_here('test.py', DEMO, 'fused.pth', *small, **here)
    assert 'test: error: fused.pth does not fit the model' in log
    log = call_here('train.py', 'fused.py', **here)
    assert 'is the config of a fused model' in log


@pytest.mark.parametrize(
    ('tool', 'args', 'text'),
    [
        ('train.py', ['nowhere.py'], 'config nowhere.py not found'),
        (
            'train.py',
            [DEMO],
            "train_dataloader: data_root 'data/demo_scenes/' is not a folder. Set",
        ),
        (
            'test.py',
            [DEMO, 'x.pth'],
            "test_dataloader: data_root 'data/demo_scenes/' is not a folder",
        ),
        ('deploy_fuse.py', [DEMO, 'nowhere.pth', 'out.pth'], 'nowhere.pth'),
        ('deploy_fuse.py', [DEMO, 'a.pth', 'out.onnx'], 'must end in .pth'),
        ('export.py', [DEMO, 'a.pth', 'out.onnx'], 'give --size HEIGHT WIDTH'),
        ('test.py', [DEMO, 'x.mnn', '--runtime', 'mnn'], 'x.mnn not found: an exported model is'),
        ('test.py', [RUNTIME, 'x.mnn', '--runtime', 'mnn'], 'default_runtime.py has no model: giv'),
        ('test.py', [CLASSIFIER, 'x.mnn', '--runtime', 'mnn'], 'has no decode_head: only segment'),
        ('estimate_memory.py', [DEMO, '--batch', 0], 'batch=0 must be an integer, at least 1'),
        ('estimate_memory.py', [RUNTIME], 'default_runtime.py has no model: give the config of'),
        ('deploy_fuse.py', [DEMO, 'a.pth', 'o.pth', '--device', 'tpu'], "device='tpu': PyTorch "),
    ],
)
def test_a_users_mistake_is_one_clear_line(tool, args, text, tmp_path, monkeypatch, capfd):
    log = call_here(tool, *args, cwd=tmp_path, code=1, monkeypatch=monkeypatch, capfd=capfd)
    assert text in log
    assert 'Traceback' not in log


def test_a_device_without_a_runtime_is_refused(tmp_path, monkeypatch, capfd):
    args = (DEMO, 'x.pth', '--device', 'cuda')
    log = call_here('test.py', *args, cwd=tmp_path, code=2, monkeypatch=monkeypatch, capfd=capfd)
    assert '--device needs --runtime; a checkpoint runs on the GPU if there is one' in log
