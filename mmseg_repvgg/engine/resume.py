"""Makes trainings resumable, and finds the checkpoint to resume from."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmseg_repvgg.checkpoint.reading import CheckpointError, read_checkpoint
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.registration import with_our_import

LAST = 'last_checkpoint'
"""mmengine's file with the path of the last saved checkpoint."""


def make_resumable(cfg: Config) -> None:
    """Change a config so that a training that is killed and resumed ends like an uninterrupted one.

    A custom checkpoint hook or batch sampler is left as it is.
    """
    hooks = cfg.setdefault('default_hooks', {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook is not None and type_name(hook) == 'CheckpointHook':
        hook['type'] = 'SafeCheckpointHook'
    loader = cfg.train_dataloader
    sampler = loader.get('sampler')
    if sampler and not loader.get('batch_sampler') and type_name(sampler) != 'SeededSampler':
        loader.sampler = dict(type='SeededSampler', sampler=sampler)
        loader.dataset = dict(type='SeededDataset', dataset=loader.dataset)
    # so that its copy in the work folder works elsewhere
    cfg.custom_imports = with_our_import(cfg.get('custom_imports'))


def last_complete_checkpoint(cfg: Config) -> str | None:
    """Find the checkpoint that a training in the config's work folder resumes from.

    It is the one that ``last_checkpoint`` names. If that file is missing or empty, or names a
    missing or damaged checkpoint, it is the newest complete training checkpoint, with a warning.

    Args:
        cfg: The config, with its ``work_dir``.

    Returns:
        Its path; None if there are no checkpoints, to start at the first step.

    Raises:
        CheckpointError: If there are checkpoints, and none is complete.
    """
    work_dir = Path(cfg.work_dir)
    named = _read_last(work_dir)
    damage = f'{work_dir / LAST} is missing or empty' if named is None else _find_damage(named)
    if not damage:
        return str(named)
    reasons = [damage]
    for file in _others_newest_first(cfg, named):
        damage = _find_damage(file)
        if not damage:
            text = f'{reasons[0]}. Resuming from {file}, the newest complete checkpoint'
            print_log(text, logger='current', level=logging.WARNING)
            return str(file)
        reasons.append(damage)
    if len(reasons) == 1 and (named is None or not named.exists()):
        return None
    raise CheckpointError(
        f'no checkpoint in {work_dir} is complete: {"; ".join(reasons)}. Delete them and train '
        'without --resume, or give a checkpoint: --resume PATH'
    )


def seed_of_checkpoint(path: str) -> int | None:
    """The seed of the training that saved a checkpoint; None if it does not say."""
    meta = read_checkpoint(path).get('meta')
    seed = meta.get('seed') if isinstance(meta, dict) else None
    return seed if isinstance(seed, int) else None


def _read_last(work_dir: Path) -> Path | None:
    """Return the path in ``last_checkpoint``; in a moved work folder, the file of that name."""
    try:
        text = (work_dir / LAST).read_text(encoding='utf-8').strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if not text:
        return None
    moved = work_dir / Path(text).name
    return moved if not Path(text).exists() and moved.exists() else Path(text)


def _others_newest_first(cfg: Config, named: Path | None) -> list[Path]:
    """Return other checkpoints in the work folder, the hook's ``out_dir`` and the named one's.

    Those named ``best_*`` cannot be resumed.
    """
    work_dir = Path(cfg.work_dir)
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    folders = {work_dir, Path(out_dir) / work_dir.name if out_dir else work_dir}
    folders.add(named.parent if named is not None else work_dir)
    files = [
        file
        for folder in folders
        for file in folder.glob('*.pth')
        if not file.name.startswith(('.', 'best_')) and file.is_file() and file != named
    ]
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)


def _find_damage(file: Path) -> str:
    """Return the reason why a file cannot be resumed from, or an empty string."""
    if file.is_dir():  # FSDP and DeepSpeed save a file for each process
        return ''
    try:
        checkpoint = read_checkpoint(file)
        lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
        with zipfile.ZipFile(file) as archive:  # read_checkpoint ignores the checksums
            damaged = archive.testzip()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return str(error)
    if damaged is not None:
        return f'{file} is damaged: the checksum of {damaged} is wrong'
    return f'{file} is not a training checkpoint: it lacks {", ".join(lacking)}' if lacking else ''
