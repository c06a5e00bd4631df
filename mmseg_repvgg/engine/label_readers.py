"""Finds the heads and metrics that read label maps, and the ids that they know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmseg_repvgg.engine.hook_helpers import unwrapped


@dataclass(frozen=True)
class LabelReader:
    """A head or a metric.

    Attributes:
        name: What it is called in a config.
        num_classes: How many classes it was built for.
        num_ids: It knows the ids from 0 to ``num_ids - 1``: one per class, but at least two in a
            metric, two in a head with one output channel and a sigmoid, one with a softmax.
        ignored: Ids that it ignores.
    """

    name: str
    num_classes: int
    num_ids: int
    ignored: frozenset[int]

    def knows(self, label: int) -> bool:
        """Whether an id is a class or ignored."""
        return 0 <= label < self.num_ids or label in self.ignored

    def __str__(self) -> str:
        ids = ' and '.join(map(str, sorted(self.ignored)))
        verb = 'is' if len(self.ignored) == 1 else 'are'
        return f'{self.name} has the classes 0 to {self.num_ids - 1}, and {ids} {verb} ignored'


def training_readers(model: Any) -> list[LabelReader]:
    """Return the heads that are trained on the labels from the pipeline."""
    model = unwrapped(model)
    return [
        _reader_of(name, head)
        for part in ('decode_head', 'auxiliary_head')
        for name, head in _heads(model, part).items()
        if not hasattr(head, 'boundary_threshold')  # STDCHead is trained on edges in the labels
    ]


def evaluation_readers(model: Any, loop: Any) -> list[LabelReader]:
    """Return the metrics that compare labels with predictions, and the head that predicts.

    The metrics decide what an evaluation ignores; without metrics, the head does.
    """
    metrics = [
        LabelReader(type(metric).__name__, len(names), max(len(names), 2), frozenset({ignored}))
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ())
        if (names := (getattr(metric, 'dataset_meta', None) or {}).get('classes'))
        and isinstance(ignored := getattr(metric, 'ignore_index', None), int)
    ]
    heads = [_reader_of(*item) for item in _heads(unwrapped(model), 'decode_head').items()][-1:]
    if metrics:
        ignored_by_all = frozenset.union(*(metric.ignored for metric in metrics))
        heads = [replace(head, ignored=ignored_by_all) for head in heads]
    return metrics + heads


def _heads(model: Any, part: str) -> dict[str, Any]:
    """The heads of a segmentor by name; those of a cascade have a number."""
    heads = getattr(model, part, None)
    found = {part: heads}
    if isinstance(heads, (nn.ModuleList, list, tuple)):
        found = {f'{part}[{i}]': head for i, head in enumerate(heads)}
    return {
        name: head
        for name, head in found.items()
        if hasattr(head, 'num_classes') and isinstance(getattr(head, 'ignore_index', None), int)
    }


def _reader_of(name: str, head: Any) -> LabelReader:
    num_ids = head.num_classes
    if getattr(head, 'out_channels', None) == 1:
        num_ids = 1 if _has_softmax_loss(head) else 2
    return LabelReader(name, head.num_classes, num_ids, frozenset({head.ignore_index}))


def _has_softmax_loss(head: Any) -> bool:
    """Whether a head has mmseg's softmax cross entropy, where one channel means one class."""
    losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    return any(
        type(loss).__name__ == 'CrossEntropyLoss' and not (loss.use_sigmoid or loss.use_mask)
        for loss in losses
    )
