"""SafeCheckpointHook: at every moment there is a complete checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmseg_repvgg.atomic_files import atomic_file, sweep

BACKEND = 'mmseg_repvgg_atomic'


@register_backend(BACKEND, force=True)
class AtomicFileBackend(LocalBackend):
    """mmengine's LocalBackend, except that a file appears only when it is complete.

    LocalBackend writes in place: an interruption leaves half a file and loses the old one.
    """

    def __init__(self) -> None:
        self._postponed: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(filepath) as temporary:
            temporary.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file; within :meth:`removals_put_off`, at its end."""
        if self._postponed is None:
            Path(filepath).unlink()
        else:
            self._postponed.append(str(filepath))

    @contextmanager
    def removals_put_off(self) -> Iterator[None]:
        """Postpone removals to the end of the block; after an exception nothing is removed."""
        files: list[str] = []
        self._postponed = files
        try:
            yield
        finally:
            self._postponed = None
        for file in files:
            Path(file).unlink(missing_ok=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, except that a kill or a full disk never does harm.

    * Files appear only when they are complete.
    * An outdated checkpoint, or one that is no longer the best, is removed after the new one is
      written. mmengine removes it before, so with ``max_keep_ckpts=1`` a failed save leaves none.
    * ``last_checkpoint`` is replaced, not overwritten.

    Checkpoints that are not local files are written as mmengine writes them.

    Args:
        *args: As for :class:`mmengine.hooks.CheckpointHook`.
        **kwargs: As there.

    Raises:
        OSError: A file cannot be written; the text names it, the reason and what to check.
    """

    backend_args: dict[str, Any] | None

    def before_train(self, runner: Runner) -> None:
        """Choose how files are written, and remove incomplete files of an interrupted training."""
        folder = self.out_dir or runner.work_dir
        args = self.backend_args, self.file_client_args
        if args == (None, None) and type(get_file_backend(folder)) is LocalBackend:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if self._is_local() and is_main_process():
            for written in {self.out_dir, runner.work_dir}:
                sweep(written, age=0)

    def _is_local(self) -> bool:
        return isinstance(self.file_backend, AtomicFileBackend)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        later = self.file_backend.removals_put_off() if self._is_local() else nullcontext()
        with later:
            super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """As in mmengine, but outdated checkpoints are removed last."""
        outdated = self._keep(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        with atomic_file(Path(runner.work_dir) / 'last_checkpoint') as temporary:
            temporary.write_text(self.last_ckpt)
        if outdated is None:
            return
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # from DeepSpeed
            self.file_backend.rmtree(path)

    def _keep(self, runner: Runner, step: int) -> int | None:
        """Add a step to those to keep; return the one that it makes outdated, if any."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return None  # a new best score saves the same step again
        kept = self.keep_ckpt_ids  # a deque, which drops the first
        outdated = kept[0] if len(kept) == self.max_keep_ckpts else None
        kept.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        return outdated
