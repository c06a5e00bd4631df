"""The demo scenes as a data set on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mmseg_repvgg.atomic_files import atomic_file, make_folder
from mmseg_repvgg.checks import is_integer
from mmseg_repvgg.datasets.cityscapes import (
    IMAGE_SUFFIX,
    LABEL_IDS_SUFFIX,
    POLYGONS_SUFFIX,
    TRAIN_IDS_SUFFIX,
    write_label_image,
)
from mmseg_repvgg.datasets.demo_scenes.scene import compose_scene
from mmseg_repvgg.datasets.jobs import run_jobs

DEMO_CLASSES = (
    'road', 'sidewalk', 'building', 'pole', 'traffic sign', 'vegetation', 'terrain', 'sky',
    'person', 'car', 'bus',
)  # fmt: skip
"""The Cityscapes classes that occur, in the order of their train ids; all else is ignored (255)."""

_CITIES = {'train': 'demoburg', 'val': 'demostadt'}
_STAMP = 'demo_scenes.json'
_VERSION = 1  # increase it when the same seed gives other pictures
_MIN_SIDE = 64  # pixels


def make_demo_scenes(
    root: str | os.PathLike[str],
    num_train: int = 200,
    num_val: int = 40,
    size: tuple[int, int] = (512, 256),
    seed: int = 0,
    workers: int = 2,
    force: bool = False,
) -> Path:
    """Draw street scenes and their labels into a folder laid out like Cityscapes.

    Each scene has an image (``leftImg8bit``) and, in ``gtFine``, polygons, label ids and train ids.
    A scene depends only on seed, size, split and its number, so it is the same for any number of
    workers or scenes. A second call with the same settings draws only missing scenes.

    Args:
        root: folder to write to; it is made if missing.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        size: (width, height) of the images in pixels, at least 64 each.
        seed: 0 or more.
        workers: number of processes; 1 uses the calling process.
        force: replace demo scenes in ``root`` that have other settings.

    Returns:
        ``root``, as the ``data_root`` of a ``CityscapesDataset``.

    Raises:
        ValueError: a setting is out of range, or ``root`` holds demo scenes with other settings, or
            another data set.
        PermissionError: ``root`` cannot be written to.
    """
    root = Path(root)
    settings = _check_settings(num_train, num_val, size, seed)
    _refuse_other_data(root)
    make_folder(root)
    stamp = root / _STAMP
    made_with = stamp.read_text().strip() if stamp.is_file() else None
    if made_with not in (None, settings) and not force:
        raise ValueError(
            f'{root} holds demo scenes with the settings {made_with}, but {settings} are '
            'asked for: replace them with force=True (--force), or choose another folder'
        )
    if made_with != settings:
        stamp.unlink(missing_ok=True)
    for path in _city_folders(root):
        if made_with != settings and path.is_dir():
            shutil.rmtree(path)
        make_folder(path)
    scenes = [('train', index) for index in range(num_train)]
    scenes += [('val', index) for index in range(num_val)]
    jobs = [
        (root, *scene, size, seed)
        for scene in scenes
        if not all(path.is_file() for path in _paths(root, *scene))
    ]
    with _one_thread():
        run_jobs(_write_scene, jobs, workers, 'demo scenes')
    if made_with != settings:
        with atomic_file(stamp) as temporary:
            temporary.write_text(f'{settings}\n')
    return root


def _check_settings(num_train: int, num_val: int, size: tuple[int, int], seed: int) -> str:
    """Return the settings for the stamp, as JSON, or raise ValueError."""
    if min(num_train, num_val) < 0 or num_train + num_val == 0:
        raise ValueError(
            f'num_train={num_train}, num_val={num_val}: both must be 0 or more, and not both 0'
        )
    pair = size if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(is_integer(length, _MIN_SIDE) for length in pair):
        raise ValueError(
            f'size={size!r} must be (width, height) of at least {_MIN_SIDE} pixels each'
        )
    if seed < 0:
        raise ValueError(f'seed={seed} must be 0 or more')
    numbers = {'num_train': num_train, 'num_val': num_val, 'seed': seed, 'version': _VERSION}
    return json.dumps({**numbers, 'size': list(size)})


def _city_folders(root: Path) -> list[Path]:
    return [
        root / kind / split / city
        for kind in ('leftImg8bit', 'gtFine')
        for split, city in _CITIES.items()
    ]


def _refuse_other_data(root: Path) -> None:
    """Raise ValueError if a folder holds images or annotations that are not demo scenes."""
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} is a file: choose a folder for the demo scenes')
    others = set(root.glob('leftImg8bit/*/*')) | set(root.glob('gtFine/*/*'))
    others -= set(_city_folders(root))
    if others:
        raise ValueError(
            f'{root} holds another data set ({sorted(others)[0]}): choose another folder'
        )


def _paths(root: Path, split: str, index: int) -> tuple[Path, Path, Path, Path]:
    """Return where image, polygons, label ids and train ids of a scene are."""
    city = _CITIES[split]
    name = f'{city}_{index:06d}_000019'  # Cityscapes annotates frame 19 of each snippet
    truth = root / 'gtFine' / split / city
    return (
        root / 'leftImg8bit' / split / city / f'{name}{IMAGE_SUFFIX}',
        truth / f'{name}{POLYGONS_SUFFIX}',
        truth / f'{name}{LABEL_IDS_SUFFIX}',
        truth / f'{name}{TRAIN_IDS_SUFFIX}',
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run OpenCV in one thread: a process forked while it has more would hang."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _write_scene(root: Path, split: str, index: int, size: tuple[int, int], seed: int) -> None:
    """Draw one scene and write its files, the image last."""
    cv2.setNumThreads(1)  # for spawned processes
    rng = np.random.default_rng([seed, list(_CITIES).index(split), index])
    image, objects = compose_scene(rng, *size)
    image_path, polygons, label_ids, train_ids = _paths(root, split, index)
    annotation = {'imgHeight': size[1], 'imgWidth': size[0], 'objects': objects}
    with atomic_file(polygons) as temporary:
        temporary.write_text(json.dumps(annotation))
    write_label_image(polygons, label_ids, 'ids')
    write_label_image(polygons, train_ids, 'trainIds')
    _, encoded = cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    with atomic_file(image_path) as temporary:
        temporary.write_bytes(encoded.tobytes())
