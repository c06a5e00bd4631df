"""The benchmarks by name: their candidates, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmseg_repvgg.benchmark import dropin, figure3, table1, table4, table6, table8, training
from mmseg_repvgg.benchmark.candidate import Candidate
from mmseg_repvgg.benchmark.record import Record


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    ``groups(runtimes, quick)`` returns the candidates by group; those of a group are measured in
    turn. ``reference(candidate)`` returns the candidate that gives the expected output: the same
    network in PyTorch, run once if it is not in a group; None if there is nothing to compare.
    """

    title: str
    groups: Callable[[Sequence[str], bool], dict[str, list[Candidate]]]
    markdown: Callable[[Record], str]
    plot: Callable[[Record, Path], None]
    reference: Callable[[Candidate], Candidate | None] = lambda candidate: None


SUITES: dict[str, Suite] = {
    'table8': Suite(
        'PSPNet at 713x713 (Table 8)',
        table8.groups,
        table8.markdown,
        table8.plot,
        table8.reference,
    ),
    'table4': Suite('Classifiers (Tables 4 and 5)', table4.groups, table4.markdown, table4.plot),
    'table1': Suite('Kernel sizes (Table 1)', table1.groups, table1.markdown, table1.plot),
    'table6': Suite(
        'Branches before fusing (Table 6)', table6.groups, table6.markdown, table6.plot
    ),
    'dropin': Suite(
        'Curated configs at 512x1024',
        dropin.groups,
        dropin.markdown,
        dropin.plot,
        dropin.reference,
    ),
    'figure3': Suite('Memory of blocks (Figure 3)', figure3.groups, figure3.markdown, figure3.plot),
    'training': Suite(
        "Training a block compared with mmpretrain's",
        training.groups,
        training.markdown,
        training.plot,
    ),
}
