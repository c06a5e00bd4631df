"""Tables in Markdown, for the benchmarks and the analyses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown; a cell without value is a dash."""
    titles = list(header)
    lines = [titles, ['---'] * len(titles), *[['-' if c is None else c for c in r] for r in rows]]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
