"""Converts masks of colours, or of other values, to label maps of ids 0, 1, 2, ... and 255."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checks import preview
from mmseg_repvgg.datasets.jobs import run_jobs

SUFFIXES = ('.png', '.bmp', '.gif', '.jpg', '.jpeg', '.tif', '.tiff', '.webp')
VOID, VOID_ID = 'void', 255
LISTED = 20
"""How many masks :func:`list_values` reads."""


@dataclass(frozen=True)
class Table:
    """What each colour or value of a mask means.

    Attributes:
        keys: Colours as 65536 R + 256 G + B, or values; in ascending order.
        ids: The id of each key.
        is_colour: Whether the keys are colours.
        classes: Names of the ids.
        palette: RGB of the ids; empty if the keys are values.
    """

    keys: tuple[int, ...]
    ids: tuple[int, ...]
    is_colour: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Table:
        """Read a file with a line ``R G B name`` or ``value name`` for each colour or value.

        Ids follow the order of the names; colours of the same name get the same id, those called
        ``void`` 255. Text after ``#`` is a comment.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a line cannot be read, or a colour is there twice.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'table {path} not found; mmseg-repvgg convert-masks MASKS prints one to start from'
            )
        rows: dict[tuple[int, ...], str] = {}
        for number, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), 1):
            fields = line.partition('#')[0].split()
            count = next((i for i, text in enumerate(fields) if not text.isdigit()), len(fields))
            key, name = tuple(map(int, fields[:count])), ' '.join(fields[count:])
            if not fields:
                continue
            if count not in (1, 3) or not name or (count == 3 and max(key) > 255):
                raise ValueError(
                    f'{path}, line {number}: {line.strip()!r} must be `R G B name` or `value name`'
                )
            if key in rows:
                raise ValueError(f'{path}, line {number}: {key} is also {rows[key]!r}')
            rows[key] = name
        lengths = set(map(len, rows))
        classes = [name for name in dict.fromkeys(rows.values()) if name != VOID]
        if len(lengths) != 1 or not 0 < len(classes) < VOID_ID:
            raise ValueError(
                f'{path} must have lines `R G B name`, or only lines `value name`, of 1 to 254 '
                'classes'
            )
        ids = {name: i for i, name in enumerate(classes)} | {VOID: VOID_ID}
        found = sorted((_code(key), ids[name]) for key, name in rows.items())
        is_colour = lengths == {3}
        first = {name: key for key, name in reversed(rows.items())}
        return cls(
            keys=tuple(key for key, _ in found),
            ids=tuple(label for _, label in found),
            is_colour=is_colour,
            classes=tuple(classes),
            palette=tuple(first[name] for name in classes) if is_colour else (),
        )

    def __str__(self) -> str:
        """The lines of configs/own_data.py."""
        colours = [list(colour) for colour in self.palette]
        return f'classes = {self.classes!r}\npalette = {colours or None!r}'


def convert_masks(
    source: Path, out: Path, table: Table | None, threshold: int = 128, workers: int = 1
) -> int:
    """Convert every mask in a folder and its subfolders to a PNG of ids, of the same name.

    Args:
        source: The folder.
        out: Folder to write to.
        table: The ids; None: grey values from ``threshold`` are 1, others 0.
        threshold: Without a table.
        workers: Number of processes.

    Returns:
        How many were converted.

    Raises:
        FileNotFoundError: If there are no masks.
        ValueError: If a mask cannot be read, has a value that is not in the table, or if no mask
            reaches the threshold. Masks converted before that are kept.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f'OUT {out} holds the masks themselves; give another folder')
    files = _masks_in(source)
    targets = [out / path.relative_to(source).with_suffix('.png') for path in files]
    if twice := [str(path) for path, count in Counter(targets).items() if count > 1]:
        raise ValueError(f'several masks would be written to {preview(twice)}; rename them')
    jobs = [(path, to, table, threshold) for path, to in zip(files, targets, strict=True)]
    run_jobs(_convert, jobs, workers, 'masks')
    if table is None and not any(np.any(_pixels(to, False)) for to in targets):
        raise ValueError(
            f'no mask in {source} has values of {threshold} or more; lower --threshold, or give a '
            f'table (mmseg-repvgg convert-masks {source} shows the values)'
        )
    return len(files)


def list_values(source: Path) -> str:
    """The colours or values of the first masks in a folder, as a table to fill in.

    Raises:
        FileNotFoundError: If there are no masks.
        ValueError: If one cannot be read.
    """
    files = _masks_in(source)[:LISTED]
    with Image.open(files[0]) as image:
        is_colour = image.mode not in ('P', 'L', '1', 'I', 'I;16')
    found: Counter[int] = Counter()
    for path in files:
        keys, counts = np.unique(_pixels(path, is_colour), return_counts=True)
        found.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    total = sum(found.values())
    lines = [f'# {len(found)} values in {len(files)} masks of {source}: correct the names']
    for i, (key, count) in enumerate(found.most_common()):
        value = f'{key >> 16} {key >> 8 & 255} {key & 255}' if is_colour else str(key)
        lines.append(f'{value} class{i}  # {100 * count / total:.2f} %')
    return '\n'.join(lines)


def _masks_in(source: Path) -> list[Path]:
    files = sorted(p for p in source.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(f'{source} has no masks: {", ".join(SUFFIXES)}')
    return files


def _code(key: Sequence[int]) -> int:
    return key[0] if len(key) == 1 else key[0] << 16 | key[1] << 8 | key[2]


def _pixels(path: Path, is_colour: bool) -> np.ndarray:
    """(H, W) int64: colours as in :class:`Table`, or values."""
    try:
        with Image.open(path) as image:
            array = np.array(image.convert('RGB') if is_colour else image).astype(np.int64)
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise ValueError(f'{path} cannot be read: {error}') from error
    if is_colour:
        return array[..., 0] << 16 | array[..., 1] << 8 | array[..., 2]
    if array.ndim == 3 and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]  # grey, saved as colours
    if array.ndim != 2:
        raise ValueError(f'{path} has colours; the table must have lines `R G B name`')
    return array


def _convert(path: Path, target: Path, table: Table | None, threshold: int) -> None:
    pixels = _pixels(path, table is not None and table.is_colour)
    if table is None:
        labels = (pixels >= threshold).astype(np.uint8)
    else:
        keys = np.array(table.keys)
        places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
        unknown = keys[places] != pixels
        if unknown.any():
            key = int(pixels[unknown][0])
            value = f'{key >> 16} {key >> 8 & 255} {key & 255}' if table.is_colour else str(key)
            raise ValueError(
                f'{path} has {int(unknown.sum())} pixels of values that are not in the table, '
                f'first {value}. Add a line `{value} {VOID}` if they are void'
                + (' (JPEG blurs colours)' if path.suffix.lower() in ('.jpg', '.jpeg') else '')
            )
        labels = np.array(table.ids, np.uint8)[places]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as temporary:
        Image.fromarray(labels).save(temporary, format='PNG')
