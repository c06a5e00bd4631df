"""The networks on CamVid: what is measured, trained once, resumed, and shown."""

import hashlib
import json
import shlex
from pathlib import Path

import pytest
import torch

from mmseg_repvgg.benchmark import camvid, camvid_trainings, networks
from mmseg_repvgg.benchmark.camvid_page import table, write_page
from mmseg_repvgg.benchmark.camvid_trainings import Training, read_scalars, train_all
from mmseg_repvgg.benchmark.candidate import Row
from mmseg_repvgg.benchmark.protocol import Protocol
from mmseg_repvgg.benchmark.record import make_record
from mmseg_repvgg.commands import train_camvid as command

NAMES = ['RepVGG-A0 + UAFM', 'PIDNet-S']


def test_the_speed_of_every_network_is_measured_fused():
    groups = camvid.groups(['pytorch', 'mnn'], quick=False)
    assert list(groups) == ['pytorch', 'mnn', 'pytorch, 512x1024', 'mnn, 512x1024']
    names = [*camvid.OURS, *camvid.THEIRS]
    assert [c.name for c in groups['mnn']] == [f'{name}, fused' for name in names]
    assert [c.name for c in groups['mnn, 512x1024']] == [f'{n}, fused' for n in camvid.REAL_TIME]
    for group, members in groups.items():
        large = group.partition(', ')[2]
        for candidate in members:
            assert networks._config(candidate.settings['config']).is_file()
            assert (
                camvid.reference(candidate) in groups[f'pytorch, {large}' if large else 'pytorch']
            )
            assert candidate.settings['size'] == ([512, 1024] if large else [360, 480])
    rewrites = {c.name: c.settings['rewrites'] for c in groups['pytorch']}
    assert rewrites['PIDNet-S, fused'] == ['batchnorm']
    assert rewrites['RepVGG-A0 + UAFM, fused'] == ['branches', 'batchnorm']
    assert rewrites['RepVGG-A0 + UAFM, rewritten'] == [
        'branches', *rewrites['PIDNet-S, rewritten']
    ]  # fmt: skip
    configs = {Path(p).stem for p in camvid.TRAINED.values()}
    folder = Path(__file__).parents[2] / 'configs' / 'camvid'
    assert configs == {path.stem for path in folder.rglob('*.py')}


def speeds():
    info = dict(parameters=2_500_000, flops=3.21e9)
    rows = [
        Row('RepVGG-A0 + UAFM, fused', 'mnn', {}, 1, [0.1, 0.1], info),
        Row('PIDNet-S, fused', 'mnn', {}, 1, [0.2, 0.2], info),
    ]
    return make_record('camvid', rows, Protocol(threads=2))


def test_the_table_of_speeds_by_hand():
    lines = camvid.markdown(speeds()).splitlines()
    assert lines[0] == '**mnn**'
    ours = '| RepVGG-A0 + UAFM, fused | 2.50 | 3.2 | 10.0 | 0 % | 2.00 (2.00 to 2.00) | - |'
    assert ours in lines
    assert '| PIDNet-S, fused | 2.50 | 3.2 | 5.0 | 0 % | 1 | - |' in lines


# As mmengine writes them: two runs, the first killed after iteration 60, with a checkpoint at 40
FIRST = [
    dict(iter=20, time=1.0, loss=2.0, step=20),
    dict(iter=40, time=2.0, loss=1.5, step=40),
    dict(mIoU=10.0, aAcc=50.0, step=40),
    dict(iter=60, time=9.0, loss=1.2, step=60),
]
SECOND = [
    dict(iter=60, time=1.0, loss=1.2, step=60),
    dict(mIoU=31.0, aAcc=70.0, step=60),
    dict(iter=80, time=1.5, loss=1.0, step=80),
    dict(mIoU=30.0, aAcc=72.5, step=80),
]


def write_logs(work_dir, runs=(FIRST, SECOND), batch_size=4):
    for i, lines in enumerate(runs):
        folder = work_dir / f'2026_{i}' / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    settings = f'train_dataloader = dict(batch_size={batch_size})\ntrain_cfg = dict(max_iters=80)\n'
    (work_dir / 'config.py').write_text(settings)


def test_results_of_an_interrupted_training_by_hand(tmp_path):
    write_logs(tmp_path)
    assert read_scalars(tmp_path, 80) == dict(
        miou=30.0,
        pixel_accuracy=72.5,
        best_miou=31.0,
        seconds=20 * (1.0 + 2.0 + 1.0 + 1.5),
        losses=[[20, 2.0], [40, 1.5], [60, 1.2], [80, 1.0]],
        validations=[[40, 10.0], [60, 31.0], [80, 30.0]],
    )
    # 5 iterations after the last that was logged
    more = dict(mIoU=40.0, aAcc=80.0, step=85)
    write_logs(tmp_path / 'longer', [FIRST, [*SECOND, more]])
    found = read_scalars(tmp_path / 'longer', 85)
    assert (found['miou'], found['seconds']) == (40.0, 110 + 5 * 1.5)
    write_logs(tmp_path / 'short', [[dict(mIoU=5.0, aAcc=9.0, step=2)]])
    assert read_scalars(tmp_path / 'short', 2) == dict(
        miou=5.0,
        pixel_accuracy=9.0,
        best_miou=5.0,
        seconds=None,
        losses=[],
        validations=[[2, 5.0]],
    )


def test_a_training_without_a_last_validation_has_no_result(tmp_path):
    write_logs(tmp_path, [FIRST])
    assert read_scalars(tmp_path, 80) == {}
    assert read_scalars(tmp_path / 'nothing', 80) == {}


def write_weights(work_dir):
    """A checkpoint as mmengine's, with the state of an optimizer."""
    checkpoint = dict(
        meta=dict(dataset_meta=dict(classes=('road',), palette=[[1, 2, 3]]), cfg='/home/me/x.py'),
        state_dict={'decode_head.conv_seg.bias': torch.arange(3.0)},
        optimizer=dict(state={0: torch.zeros(1000)}),
    )
    torch.save(checkpoint, work_dir / 'iter_80.pth')


@pytest.fixture
def fake_training(monkeypatch):
    """Instead of a process that trains: logs, or a failure for PIDNet-S with seed 1."""
    calls = []

    def run(command):
        words = shlex.split(command)
        calls.append(words)
        work_dir = Path(words[words.index('--work-dir') + 1])
        if 'pidnet_s_seed1' in work_dir.name:
            return 3
        write_logs(work_dir)
        write_weights(work_dir)
        return 0

    monkeypatch.setattr(camvid_trainings, 'run_command', run)
    return calls


def test_each_network_is_trained_once(tmp_path, fake_training):
    said = []
    options = ['train_cfg.max_iters=80']
    failures = train_all(tmp_path, NAMES, [0, 1], options, said.append)
    assert len(failures) == 1
    assert failures[0].startswith('PIDNet-S, seed 1: the training ended with exit code 3; its log')
    assert [words[2] for words in fake_training] == [
        'camvid/uafm_repvgg_a0.py', 'camvid/pidnet_s.py',
    ] * 2  # fmt: skip
    first = Training.read(tmp_path / 'uafm_repvgg_a0_seed0.json')
    assert (first.miou, first.images, first.seed) == (30.0, 80 * 4, 0)
    assert first.machine and first.versions['torch']
    weights = tmp_path / 'weights' / first.weights['file']
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.name == f'uafm_repvgg_a0_seed0-{digest[:8]}.pth'
    assert (first.weights['sha256'], first.weights['bytes']) == (digest, weights.stat().st_size)
    words = shlex.split(first.command)
    assert words[:3] == ['mmseg-repvgg', 'train', 'camvid/uafm_repvgg_a0.py']
    assert words[5:] == ['--resume', '--cfg-options', 'randomness.seed=0', *options]
    # again: only what failed runs
    train_all(tmp_path, NAMES, [0, 1], options, said.append)
    assert [words[2] for words in fake_training[4:]] == ['camvid/pidnet_s.py']
    assert any('uafm_repvgg_a0_seed0.json is there' in line for line in said)
    with pytest.raises(ValueError, match='was made by another command, .*max_iters=80. Give the'):
        train_all(tmp_path, NAMES, [0], ['train_cfg.max_iters=90'])
    with pytest.raises(ValueError, match=r"unknown networks \['B9'\]; choose from RepVGG-A0"):
        train_all(tmp_path, ['B9'])


def test_a_training_stopped_in_its_last_validation_is_tested(tmp_path, monkeypatch):
    calls = []

    def run(command):
        words = shlex.split(command)
        calls.append(words[1])
        work_dir = Path(words[words.index('--work-dir') + 1])
        if words[1] == 'train':
            write_logs(work_dir, [FIRST, SECOND[:3]])  # no validation at 80
            write_weights(work_dir)
        else:
            assert words[2:4] == ['camvid/pidnet_s.py', str(work_dir.parent / 'iter_80.pth')]
            (work_dir / '2026_9').mkdir(parents=True)
            metrics = dict(aAcc=66.0, mIoU=33.0, time=1.0)
            (work_dir / '2026_9/2026_9.json').write_text(json.dumps(metrics))
        return 0

    monkeypatch.setattr(camvid_trainings, 'run_command', run)
    assert train_all(tmp_path, ['PIDNet-S'], say=lambda text: None) == []
    assert calls == ['train', 'test']
    found = Training.read(tmp_path / 'pidnet_s_seed0.json')
    assert (found.miou, found.pixel_accuracy, found.best_miou) == (33.0, 66.0, 33.0)


def test_the_page_by_hand(tmp_path, fake_training, monkeypatch, capsys):
    train_all(tmp_path, NAMES, [0], say=lambda text: None)
    other = Training.read(tmp_path / 'uafm_repvgg_a0_seed0.json')
    other = Training(**{**vars(other), 'seed': 1, 'miou': 34.0})
    other.write(tmp_path / 'uafm_repvgg_a0_seed1.json')
    lines = write_page(tmp_path).splitlines()
    assert '| RepVGG-A0 + UAFM | 32.00 | 30.00 to 34.00 | 72.50 | 2 |' in lines  # 110 s
    assert '| PIDNet-S | 30.00 | - | 72.50 | 2 |' in lines
    for name in ('camvid_trainings.png', 'camvid_curves.png'):
        assert (tmp_path / name).stat().st_size > 1000
    assert not any('every pixel' in line for line in lines)
    recipe = Training(**{**vars(other), 'name': 'every pixel', 'seed': 1, 'miou': 34.5})
    recipe.write(tmp_path / 'every_pixel_seed1.json')  # 0.5 more at the same seed
    assert '| every pixel | 34.50 | +0.50 | 1 | 320 |' in write_page(tmp_path).splitlines()
    (tmp_path / 'every_pixel_seed1.json').unlink()
    (tmp_path / 'alone').mkdir()
    recipe.write(tmp_path / 'alone' / 'every_pixel_seed1.json')
    assert '| every pixel | 34.50 | - | 1 | 320 |' in write_page(tmp_path / 'alone').splitlines()
    speeds().write(tmp_path / 'camvid.json')
    monkeypatch.setattr(
        'sys.argv', ['x', str(tmp_path), '--table', '--speeds', str(tmp_path / 'camvid.json')]
    )
    command.main()
    lines = capsys.readouterr().out.splitlines()
    ours = '| RepVGG-A0 + UAFM | 32.00 | 30.00 to 34.00 | 72.50 | 2 | 2.50 | 3.2 | 10.0 |'
    assert lines.index(ours) < lines.index(
        '| PIDNet-S | 30.00 | - | 72.50 | 2 | 2.50 | 3.2 | 5.0 |'
    )
    assert (tmp_path / 'camvid_trainings.md').read_text().splitlines() == lines[:-1]
    rows = [
        Row('RepVGG-A0 + UAFM, fused', 'pytorch', {}, 1, [0.1], dict(parameters=1, flops=1)),
        Row('RepVGG-A0 + UAFM, rewritten', 'pytorch', {}, 1, [0.05], {}),
    ]
    rows.append(Row('RepVGG-A0 + UAFM, fused', 'mnn, 512x1024', {}, 1, [0.4], {}))
    record = make_record('camvid', rows, Protocol(threads=2))
    titles, _, line = table({'RepVGG-A0 + UAFM': [other]}, record).splitlines()
    assert titles.endswith('| images/s, pytorch | images/s, pytorch rewritten |')
    assert line.endswith('| 10.0 | 20.0 |')
    (tmp_path / 'pidnet_s_seed0.json').write_text('{}')
    with pytest.raises(SystemExit, match='error: .*pidnet_s_seed0.json is not a record of'):
        command.main()
    monkeypatch.setattr('sys.argv', ['x', str(tmp_path / 'no'), '--table'])
    with pytest.raises(SystemExit, match='holds no records; train with mmseg-repvgg train-camvid'):
        command.main()
