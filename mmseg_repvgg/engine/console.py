"""A short console log for mmengine's Runner; the log file in the work folder keeps everything."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

HIDDEN = (
    '-' * 60,  # the environment
    'Config:',
    'Hooks will be executed',
    'Distributed training is not used',
    'Checkpoints will be saved',
    'Exp name:',
    'paramwise_options',
    'The prefix is not set in metric class',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)
"""Beginnings of messages of mmengine that come with every run."""
HIDDEN_WARNINGS = (
    '``build_loss`` would be deprecated',
    'The draw is False',
    'When align_corners=True',
)
"""Beginnings of warnings of mmseg about its own code, and about layers of the paper's PSPNet."""
PROGRESS = re.compile(r'(?:Iter|Epoch)\((train|val|test)\).*?\[ *(\d+)/\d+\] *(eta)?')
EVALUATION_INTERVAL = 50
"""Images between two lines of an evaluation; a short training logs every iteration."""
DETAILS = re.compile(r'(?<!\S)(?:(?:base_)?lr|(?:data_)?time|\w+\.[\w.]+): \S+ *')
"""Learning rates, times, and the parts of the loss (``decode.loss_ce``)."""


class ShortLogRunner(Runner):
    """A Runner whose console shows no tables, and of each progress line the main values."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger and shorten what goes to the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(is_shown)
                handler.setFormatter(ShortFormatter('%(asctime)s %(message)s', '%H:%M:%S'))
        return logger


class ShortFormatter(logging.Formatter):
    """Leaves details out of progress lines, and shows the level of warnings and errors only."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, which stays as it is."""
        text = record.getMessage()
        if PROGRESS.match(text):
            text = DETAILS.sub('', text)
        if record.levelno > logging.INFO:
            text = f'{record.levelname}: {text}'
        short = copy.copy(record)
        short.msg, short.args = text, None
        return super().format(short)


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a record is shown on the console."""
    text = record.getMessage()
    if text.lstrip().startswith(HIDDEN):
        return False
    found = PROGRESS.match(text)
    if found is None or found[1] == 'train' or found[3] is None:  # scores have no eta
        return True
    return int(found[2]) % EVALUATION_INTERVAL == 0


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Hide :data:`HIDDEN_WARNINGS`."""
    with warnings.catch_warnings():
        for text in HIDDEN_WARNINGS:
            warnings.filterwarnings('ignore', re.escape(text))
        yield
