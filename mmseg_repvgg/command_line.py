"""What the tools share; imports nothing heavy."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


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
