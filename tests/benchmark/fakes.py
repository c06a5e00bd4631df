"""Subjects of known cost and fate."""

import os
import signal
import time

import numpy as np

from mmseg_repvgg.benchmark.candidate import Built


def sleeper(seconds: float, label: int = 0, **info) -> Built:
    return Built(lambda: time.sleep(seconds), lambda: np.array([1, 2, label]), info)


def failing(when: str) -> Built:
    def fail() -> None:
        if when == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if when == 'hanging':
            time.sleep(60)
        raise RuntimeError('no such luck')

    if when == 'building':
        fail()
    return Built(fail)


def hungry(megabytes: int) -> Built:
    return Built(lambda: np.ones(megabytes << 20, np.uint8).sum())
