"""What is known about a data set of images and label maps, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmseg_repvgg.checks import preview

BAR = 30
"""Characters of the longest bar."""


@dataclass
class DataReport:
    """What was found in a data set.

    Attributes:
        name: What the data set is called in messages.
        classes: Names of the classes.
        palette: RGB of each class.
        ignored: Ids that the heads and metrics ignore.
        images: Paths of all images.
        samples: What mmseg knows about each pair of image and label map that was read.
        sizes: How often each (width, height) occurs.
        pixels: For each id, the number of pixels, after ``reduce_zero_label`` and the like.
        masks: For each id, the number of label maps that have it.
        problems: A line for each thing that must be fixed.
        notes: A line for each thing that may be meant.
    """

    name: str
    classes: tuple[str, ...] = ()
    palette: Sequence[Sequence[int]] = ()
    ignored: frozenset[int] = frozenset()
    images: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def shares(self) -> dict[int, float]:
        """Share of all pixels, 0 to 1, of every class and every other id that was found."""
        total = max(sum(self.pixels.values()), 1)
        ids = sorted({*range(len(self.classes)), *self.pixels})
        return {label: self.pixels[label] / total for label in ids}

    def label_name(self, label: int) -> str:
        """The name of a class, ``ignored`` or ``unknown``."""
        if label in self.ignored:
            return 'ignored'
        return self.classes[label] if 0 <= label < len(self.classes) else 'unknown'

    def __str__(self) -> str:
        sizes = [f'{w}x{h} ({n})' for (w, h), n in self.sizes.most_common()]
        lines = [f'{self.name}: {len(self.images)} images, sizes {preview(sizes, 5)}']
        shares, names = self.shares(), [self.label_name(label) for label in self.shares()]
        width = max(map(len, names), default=0)
        longest = max(shares.values(), default=0) or 1
        for (label, share), name in zip(shares.items(), names, strict=True):
            bar = '█' * round(BAR * share / longest)
            lines.append(
                f'{label:5} {name:{width}} {100 * share:6.2f} %  {self.masks[label]:5} masks  {bar}'
            )
        lines += [f'note: {note}' for note in self.notes]
        return '\n'.join(lines + [f'error: {problem}' for problem in self.problems])
