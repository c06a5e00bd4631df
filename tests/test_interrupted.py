"""Killed, out of space, not allowed: files are complete, and a training goes on as it was."""

import json
import os
import random
import resource
import signal
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmseg_repvgg.atomic_files import sweep
from mmseg_repvgg.checkpoint.reading import read_checkpoint
from mmseg_repvgg.engine import launch, resume
from mmseg_repvgg.engine.checkpoint_hook import SafeCheckpointHook
from mmseg_repvgg.engine.resume import last_complete_checkpoint, seed_of_checkpoint
from tests import processes
from tests.common import runner_cfg
from tests.killing import Phase, die_at_line, half_writes, kill_in_phase

PHASE = Phase()
STEPS = 6
SAVING = 'mmseg_repvgg/atomic_files.py', 'engine/checkpoint_hook.py', '/killing.py'


@HOOKS.register_module(force=True)
class PhaseHook(Hook):
    """Says whether the training trains or validates, with the fused copy live."""

    priority = 'LOW'  # after the deploy hook

    def before_train(self, runner):
        PHASE.set('train')

    def before_val_epoch(self, runner):
        PHASE.set('validate')

    def after_val_epoch(self, runner, metrics=None):
        PHASE.set('train')

    def after_train(self, runner):
        PHASE.set('end')


def config(scenes: Path, work_dir: Path, **changes) -> Config:
    cfg = runner_cfg(scenes, work_dir, max_iters=STEPS, val_interval=3, **changes)
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=1, save_best='mIoU')
    cfg.custom_hooks = [
        dict(type='RepVGGDeployHook', rewrites=['branches']),
        dict(type='PhaseHook'),
    ]
    cfg.param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False)]
    return cfg


def train(cfg: Config, die: int | None = None) -> None:
    """Train on from what is there; killed at the ``die``-th line of saving."""
    # mmengine formats the config with yapf for each checkpoint, half of the time of these trainings
    Config.pretty_text = property(lambda self: '')
    for name in '_save_checkpoint_with_step', '_save_best_checkpoint':
        wrapped = PHASE.wraps(getattr(SafeCheckpointHook, name), 'save')
        setattr(SafeCheckpointHook, name, wrapped)
    if die is not None:
        half_writes()
        die_at_line(die, SAVING, phase=PHASE)
    launch.train(cfg, resume=True)


def losses(work_dir: Path) -> dict[int, list[float]]:
    """By step, what was logged for it, in any of the trainings in the folder."""
    found: dict[int, list[float]] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # the process died in it
                continue
            if 'loss' in values:
                found.setdefault(values['step'], []).append(values['loss'])
    return found


def assert_goes_on_as(undisturbed: dict[int, list[float]], work_dir: Path) -> None:
    found = losses(work_dir)
    assert found.keys() == undisturbed.keys()
    for step, values in found.items():
        assert set(values) == set(undisturbed[step]), f'step {step}'


def assert_whole(file: Path) -> None:
    read_checkpoint(file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None


def assert_sound(work_dir: Path, has_saved: bool) -> None:
    """Whatever has a checkpoint's name is complete; once there was one, there is one."""
    checkpoints = [file for file in work_dir.glob('*.pth') if not file.name.startswith('.')]
    for file in checkpoints:
        assert_whole(file)
    if has_saved:
        assert any(file.name.startswith('iter_') for file in checkpoints)
        assert_whole(Path((work_dir / 'last_checkpoint').read_text()))


@pytest.fixture(scope='module')
def undisturbed(scenes, tmp_path_factory):
    """The losses of a training that nothing happens to."""
    work_dir = tmp_path_factory.mktemp('undisturbed')
    log = work_dir / 'log'
    assert processes.run(train, config(scenes, work_dir), output=log) == 0, log.read_text()
    found = losses(work_dir)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert len({values[0] for values in found.values()}) == STEPS
    return found


def finish(scenes, work_dir, undisturbed, **changes):
    log = work_dir / 'log'
    cfg = config(scenes, work_dir, **changes)
    assert processes.run(train, cfg, output=log) == 0, log.read_text()
    assert_goes_on_as(undisturbed, work_dir)
    left = {file.name for file in work_dir.glob('*.pth')}
    assert f'iter_{STEPS}.pth' in left
    assert not any(name.startswith('.') for name in left)
    assert_sound(work_dir, has_saved=True)


@pytest.mark.parametrize('workers', [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_resumed_training_has_the_losses_of_an_undisturbed_one(
    scenes, tmp_path, undisturbed, workers
):
    """With dropout, random crops and flips; the number of workers may differ."""
    cfg = config(scenes, tmp_path)
    cfg.train_dataloader.num_workers = workers
    cfg.train_dataloader.persistent_workers = workers > 0
    first = config(scenes, tmp_path)
    first.train_cfg.max_iters, first.param_scheduler[0].end = 4, STEPS
    assert processes.run(train, first) == 0
    log = tmp_path / 'log'
    assert processes.run(train, cfg, output=log) == 0, log.read_text()
    assert {step: len(values) for step, values in losses(tmp_path).items()} == dict.fromkeys(
        range(1, STEPS + 1), 1
    )
    assert_goes_on_as(undisturbed, tmp_path)


def train_as_mmengine(cfg: Config) -> None:
    launch.make_resumable = lambda cfg: None
    launch.StepSeedHook = Hook
    launch.train(cfg, resume=True)


@pytest.mark.slow
def test_negative_control_mmengine_alone_gives_other_losses(scenes, tmp_path):
    """Without the seeds of steps and samples a resumed training draws other dropout."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    first = config(scenes, parts)
    first.train_cfg.max_iters, first.param_scheduler[0].end = 4, STEPS
    for cfg in (config(scenes, whole), first, config(scenes, parts)):
        assert processes.run(train_as_mmengine, cfg) == 0
    a, b = losses(whole), losses(parts)
    assert a[4] == b[4]
    assert a[5] != b[5]


def die_in_mmengines_put(cfg: Config) -> None:
    die_at_line(3, ['backends/local_backend.py'], ['put'])
    train_as_mmengine(cfg)


@pytest.mark.slow
def test_negative_control_mmengine_leaves_half_files(scenes, tmp_path):
    """Killed between opening and writing, mmengine's hook leaves an empty file, and no other."""
    assert processes.run(die_in_mmengines_put, config(scenes, tmp_path)) == -signal.SIGKILL
    assert (tmp_path / 'iter_2.pth').stat().st_size == 0
    with pytest.raises(ValueError, match='iter_2.pth is an empty file'):
        assert_sound(tmp_path, has_saved=False)


def kill_saving_at_lines(scenes, work_dir, lines):
    """Kill trainings, each resumed, at some lines of saving; how many kills were survived."""
    count, has_saved = 0, False
    for line in lines:
        code = processes.run(train, config(scenes, work_dir), line)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert_sound(work_dir, has_saved)
        has_saved |= (work_dir / 'last_checkpoint').exists()
        count += 1
    return count


def test_killed_at_lines_of_saving(scenes, tmp_path, undisturbed):
    """While the first checkpoint is written, the second, and the best one."""
    assert kill_saving_at_lines(scenes, tmp_path, [20, 45, 70]) == 3
    finish(scenes, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('first', [1, 2, 3])
def test_killed_at_every_line_of_saving(scenes, tmp_path, undisturbed, first):
    """Three trainings, each killed at every third line, until there are no more lines."""
    count = kill_saving_at_lines(scenes, tmp_path, range(first, 400, 3))
    finish(scenes, tmp_path, undisturbed)
    print(f'survived {count} kills at lines of saving')
    assert count > 20


def kill_at_random(scenes, work_dir, undisturbed, count, seed) -> Counter:
    """Trainings killed in each phase in turn, at a random moment; how many died in which."""
    draw, died = random.Random(seed), Counter()
    longest = dict(start=1.0, train=0.6, save=0.03, validate=0.3)
    training, has_saved = 0, False
    folder = work_dir / str(training)
    while sum(died.values()) < count:
        target = list(longest)[sum(died.values()) % len(longest)]
        if target == 'start' and not has_saved and folder.exists():
            target = 'save'  # so that it gets on
        phase = kill_in_phase(target, longest[target], draw, PHASE, train, config(scenes, folder))
        assert_sound(folder, has_saved)
        has_saved |= (folder / 'last_checkpoint').exists()
        died[phase] += phase != 'end'
        if phase == 'end':
            finish(scenes, folder, undisturbed)
            training, has_saved = training + 1, False
            folder = work_dir / str(training)
    if folder.exists():
        finish(scenes, folder, undisturbed)
    return +died


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2, 3, 4])
def test_killed_at_many_random_moments(scenes, tmp_path, undisturbed, seed):
    died = kill_at_random(scenes, tmp_path, undisturbed, count=30, seed=seed)
    print(f'survived kills by phase: {dict(died)}')
    assert set(died) == {'start', 'train', 'save', 'validate'}


@pytest.mark.parametrize(
    'content',
    [
        None,
        'cut',
        *(
            pytest.param(content, marks=pytest.mark.slow)
            for content in (b'', b'/nowhere/iter_9.pth', b'\xff\xfe', 'flip')
        ),
    ],
)
def test_resume_finds_the_newest_whole_checkpoint(scenes, tmp_path, monkeypatch, content):
    """Whatever ``last_checkpoint`` is: missing, empty, wrong, or right with a damaged file."""
    cfg = config(scenes, tmp_path)
    older, newer, last = (tmp_path / n for n in ('iter_2.pth', 'iter_4.pth', 'last_checkpoint'))
    save(older)
    save(tmp_path / 'best_mIoU_iter_9.pth')
    save(tmp_path / '.iter_9.1-0123abcd.tmp.pth')
    save(newer)
    os.utime(older, (1, 1))
    expected = newer
    if isinstance(content, bytes):
        last.write_bytes(content)
    elif content is not None:
        last.write_text(str(newer))
        data = bytearray(newer.read_bytes())
        data[data.index(bytes(SIZE)) + 9] ^= 1  # of the zeros that are the weights
        newer.write_bytes(data if content == 'flip' else data[:-1])
        expected = older
    said = []
    monkeypatch.setattr(resume, 'print_log', lambda text, **_: said.append(text))
    assert last_complete_checkpoint(cfg) == str(expected)
    assert any('Resuming from' in text for text in said)


SIZE = 4096


def save(file: Path) -> None:
    import torch

    state = dict(weight=torch.zeros(SIZE // 4))
    torch.save(dict(meta=dict(iter=1, seed=7), message_hub={}, state_dict=state), file)


def test_resume_takes_the_named_checkpoint_or_says_that_none_is_whole(scenes, tmp_path):
    cfg = config(scenes, tmp_path)
    assert last_complete_checkpoint(cfg) is None
    save(tmp_path / 'iter_2.pth')
    save(tmp_path / 'iter_4.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    assert last_complete_checkpoint(cfg) == str(tmp_path / 'iter_2.pth')
    assert seed_of_checkpoint(str(tmp_path / 'iter_2.pth')) == 7
    (tmp_path / 'last_checkpoint').write_text('/moved/work/iter_2.pth')
    assert last_complete_checkpoint(cfg) == str(tmp_path / 'iter_2.pth')
    for file in tmp_path.glob('*.pth'):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r'no checkpoint in .* is complete: .*iter_2.*--resume'):
        last_complete_checkpoint(cfg)


def test_temporary_files_of_dead_processes_are_swept(tmp_path):
    dead = processes.start(int)
    processes.wait(dead)
    gone = [tmp_path / f'.iter_4.{dead}-0123abcd.tmp.pth', tmp_path / f'.{dead}-0123abcd.tmp-abc']
    gone[1].mkdir()
    names = [f'.iter_4.{os.getpid()}-0123abcd.tmp.pth', f'iter_4.{dead}-0123abcd.tmp.pth']
    names += ['.bashrc', '.git', '.123.tmp', '.backup.2024.tmp', '.run.77777777.tmp-dir']
    kept = [tmp_path / name for name in names]
    for file in (gone[0], *kept):
        file.touch()
    sweep(tmp_path)
    assert all(file.exists() for file in (*gone, *kept))  # they are too young
    sweep(tmp_path, age=0)
    assert [file.exists() for file in (*gone, *kept)] == [False] * 2 + [True] * 7


@HOOKS.register_module(force=True)
class FullHook(Hook):
    """From a step on no file can grow past a limit: what a full disk does, but for the reason."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))


def test_a_full_disk_leaves_the_last_checkpoint(scenes, tmp_path):
    cfg = config(scenes, tmp_path)
    cfg.custom_hooks.append(dict(type='FullHook'))
    log = tmp_path / 'log'
    assert processes.run(train, cfg, output=log) == 1
    assert '.pth was not written: File too large. Check that' in log.read_text()
    assert_sound(tmp_path, has_saved=True)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')


def test_a_read_only_work_folder_is_said_at_once(scenes, tmp_path):
    def as_nobody() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        launch.train(config(scenes, tmp_path / 'work'))

    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    (tmp_path / 'work').mkdir(mode=0o555)
    (tmp_path / 'log').touch()
    assert processes.run(as_nobody, output=tmp_path / 'log') == 1
    text = (tmp_path / 'log').read_text()
    assert f'nothing can be written to the folder {tmp_path}/work: Permission denied' in text
    assert not list((tmp_path / 'work').iterdir())
