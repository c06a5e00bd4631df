"""Reference outputs for the runtimes: those of the same network in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from mmseg_repvgg.benchmark.candidate import Candidate, Outcome
from mmseg_repvgg.benchmark.protocol import Protocol, measure


class References:
    """Outputs of the candidates' references, each run at most once.

    Args:
        of: Returns a candidate's reference, or None.
        protocol: Used without its rounds and warm-up.
        say: Called with each line of progress.
    """

    def __init__(
        self,
        of: Callable[[Candidate], Candidate | None],
        protocol: Protocol,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.of, self.say = of, say
        self.protocol = replace(protocol, rounds=1, warm_up=0)
        self._outputs: dict[str, np.ndarray | None] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Store the references of ``outcomes``; run those that are not among them."""
        outcomes = [outcome for outcome in outcomes if not outcome.failure]
        self._keep(outcomes)
        wanted = (self.of(outcome.candidate) for outcome in outcomes)
        missing = {
            _key(candidate): replace(candidate, name=f'{candidate.name}, for comparison')
            for candidate in wanted
            if candidate is not None and _key(candidate) not in self._outputs
        }
        for candidate in missing.values():  # one at a time, to save memory; nothing is timed
            self._keep(measure([candidate], self.protocol, self.say))

    def agreement(self, outcome: Outcome) -> float | None:
        """The share of an outcome's class indices that equal its reference's; None without one."""
        reference = self.of(outcome.candidate)
        expected = None if reference is None else self._outputs.get(_key(reference))
        if expected is None or outcome.output is None:
            return None
        return float(np.mean(outcome.output == expected))

    def _keep(self, outcomes: Iterable[Outcome]) -> None:
        self._outputs |= {_key(outcome.candidate): outcome.output for outcome in outcomes}


def _key(candidate: Candidate) -> str:
    """Identify what is built, whatever the candidate's name."""
    return json.dumps([candidate.builder, candidate.settings], sort_keys=True)
