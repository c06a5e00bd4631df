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
    """mmengine's local files, but that a file appears under its name when it is complete.

    LocalBackend writes in place: who is stopped meanwhile leaves half a file, and has lost the old
    one.
    """

    def __init__(self) -> None:
        self._put_off: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(filepath) as temporary:
            temporary.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file; in :meth:`removals_put_off` at its end."""
        if self._put_off is None:
            Path(filepath).unlink()
        else:
            self._put_off.append(str(filepath))

    @contextmanager
    def removals_put_off(self) -> Iterator[None]:
        """Remove what is to be removed at the end of the block, and nothing after an exception."""
        files: list[str] = []
        self._put_off = files
        try:
            yield
        finally:
            self._put_off = None
        for file in files:
            Path(file).unlink(missing_ok=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, but that a kill or a full disk does no harm at any time.

    * Files appear under their names when they are complete.
    * An outdated or surpassed checkpoint is removed when its successor is there; mmengine removes
      first, so that with ``max_keep_ckpts=1`` a failure to save leaves none.
    * ``last_checkpoint`` is replaced, not overwritten.

    Checkpoints that go to other places than local files are written as mmengine writes them.

    Args:
        *args: As of :class:`mmengine.hooks.CheckpointHook`.
        **kwargs: As there.

    Raises:
        OSError: A file cannot be written; the text names it, the reason and what to check.
    """

    backend_args: dict[str, Any] | None

    def before_train(self, runner: Runner) -> None:
        """Choose how files are written, and remove what an interrupted training left."""
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
        """mmengine's, in another order."""
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
        for path in outdated:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # as DeepSpeed saves
                self.file_backend.rmtree(path)

    def _keep(self, runner: Runner, step: int) -> list[str]:
        """Count a step among those to keep; the checkpoints that are outdated by it."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return []  # the best one may be saved in the same step
        steps = [*self.keep_ckpt_ids, step]
        first = max(len(steps) - self.max_keep_ckpts, 0)
        self.keep_ckpt_ids.extend([step])  # drops the first by its length
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        names = [self.filename_tmpl.format(old) for old in steps[:first]]
        return [self.file_backend.join_path(self.out_dir, name) for name in names]
