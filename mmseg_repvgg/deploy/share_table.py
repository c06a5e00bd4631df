"""The table of class shares: Parquet files with a row per image, written a part a minute."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mmseg_repvgg.deploy.storage import Folder

SHARES = 'shares'
"""The folder of the table."""

SECONDS_PER_PART = 60.0
"""What is segmented in this time is done again if the writing process is killed."""


class ShareTable:
    """Adds rows to a table; as a context, writes the last ones at its end, also after an error.

    Columns: ``image``, ``height``, ``width`` in pixels, and ``share_CLASS``, the share of each
    class in the pixels, 0 to 1.

    Args:
        out: The folder; the table is its subfolder :data:`SHARES`.
        classes: Their names; columns of equal names get a number.
    """

    def __init__(self, out: Folder, classes: Sequence[str]) -> None:
        self.out, self.classes = out, tuple(classes)
        shares = [
            f'share_{name}' if self.classes.count(name) == 1 else f'share_{name}_{index}'
            for index, name in enumerate(self.classes)
        ]
        kinds = [pa.string(), pa.int32(), pa.int32(), *(pa.float64() for _ in shares)]
        names = ['image', 'height', 'width', *shares]
        self.schema = pa.schema(zip(names, kinds, strict=True))
        self._rows: list[list[Any]] = []
        self._start = time.monotonic()

    def __enter__(self) -> ShareTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def images(self) -> set[str]:
        """The images in the table as it was written.

        Raises:
            OSError: If it cannot be read.
        """
        found = self.out.read_table(SHARES, ['image'])
        return set() if found is None else set(found['image'].to_pylist())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add an image: ``image``, ``height``, ``width``, and ``counts``, pixels of each class."""
        pixels = row['height'] * row['width']
        shares = [count / pixels for count in row['counts']]
        self._rows.append([row['image'], row['height'], row['width'], *shares])
        if time.monotonic() - self._start >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not written yet, to a file of their own.

        Raises:
            OSError: If it cannot be written.
        """
        self._start = time.monotonic()
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
        content = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_arrays(arrays, schema=self.schema), content)
        name = f'{time.strftime("%Y%m%dT%H%M%S", time.gmtime())}-{secrets.token_hex(4)}.parquet'
        self.out.write(f'{SHARES}/{name}', content.getvalue().to_pybytes())
        self._rows.clear()
