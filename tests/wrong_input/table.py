"""What the cases of wrong input are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmseg_repvgg.deploy.fuse import fuse_checkpoint


@dataclass
class Given:
    """What a case may use, in a folder of its own."""

    folder: Path
    scenes: Path
    cfg: Config
    state: dict[str, torch.Tensor]

    def file(self, content: bytes, name: str = 'x.pth') -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def saved(self, content: Any, name: str = 'x.pth') -> Path:
        torch.save(content, self.folder / name)
        return self.folder / name

    def fuse(self, content: Any = None, cfg: Config | None = None, out='f.pth', **options):
        source = self.saved(self.state if content is None else content)
        options = dict(num_images=0) | options
        try:
            return fuse_checkpoint(cfg or self.cfg, source, self.folder / out, **options)
        finally:
            if not (self.folder / out).is_dir():  # nothing is written on failure
                assert not (self.folder / out).exists() or self.is_accepted
            (self.folder / 'f.py').unlink(missing_ok=True)

    is_accepted = False


class Table(dict[str, tuple[Callable[[Given], Any], type[BaseException], tuple[str, ...]]]):
    """By the name of a case: what is done, the kind of error, and pieces its text must have."""

    def add(
        self, name: str, call: Callable[[Given], Any], error: type[BaseException], *parts: str
    ) -> None:
        assert name not in self, name
        assert parts, name
        self[name] = (call, error, parts)
