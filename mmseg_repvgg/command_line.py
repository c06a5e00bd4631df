"""What the tools share; imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


def config_parser(
    description: str | None, config: str = 'config file', add_help: bool = True
) -> argparse.ArgumentParser:
    """A parser for ``config`` and ``--cfg-options``, which ``launch.load_config`` takes.

    Args:
        description: Shown as it is.
        config: Help of the argument ``config``.
        add_help: Whether it has ``--help``; not as one of the ``parents`` of another parser.
    """
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=add_help,
    )
    parser.add_argument('config', help=config)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='settings to override, key=value'
    )
    return parser


@contextmanager
def user_errors(tool: str) -> Iterator[None]:
    """End a tool with one line for an error that this package raised for the user.

    Any other error keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get('__name__', '').startswith('mmseg_repvgg.'):
            raise
        sys.exit(f'{tool}: error: {error}')
