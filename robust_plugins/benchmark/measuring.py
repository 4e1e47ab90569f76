"""`measure`: how long a study takes, from a few samples of each model in each of its balls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from robust_plugins.benchmark.configuration import Configuration
from robust_plugins.benchmark.executing import execute, stop_all
from robust_plugins.benchmark.planning import Batch, plan
from robust_plugins.benchmark.subjects import Subject

FEW = 5
"""Samples of the larger one of the two batches that are timed, spread over all."""

SINGLE = 3
"""How many samples are timed alone."""

SPENT = 5.0
"""Seconds after which no further ball is tried by the same component on the same model."""

Asked = tuple[str, str, str]
"""The names of a component, a model and a data set."""


@dataclass(frozen=True)
class Cost:
    """The seconds of a batch: `call`, and `sample` for each of its samples."""

    call: float
    sample: float

    def of(self, batch: Batch) -> float:
        """The seconds of this batch."""
        return self.call + self.sample * len(batch)


def measure(configuration: Configuration, subjects: Sequence[Subject]) -> dict[Asked, Cost]:
    """The cost of each component on each model and data set; nothing is written.

    Some samples are timed alone, of which the quickest tells what a call costs, and then five together in each ball.
    What few samples cannot tell is how many of the others run until their timeout.
    """
    alone: dict[Asked, float] = {}
    few: dict[Asked, list[tuple[float, int]]] = defaultdict(list)
    try:
        for name, seconds, _ in _timed(configuration, subjects, 1):
            alone[name] = min(seconds, alone.get(name, seconds))
        for name, seconds, count in _timed(configuration, subjects, FEW):
            few[name].append((seconds, count))
    finally:
        stop_all()
    found = {}
    for name, times in few.items():
        count = max(count for _, count in times)
        mean = sum(seconds for seconds, _ in times) / len(times)
        sample = max(mean - alone[name], 0.0) / (count - 1) if count > 1 else alone[name]
        found[name] = Cost(max(alone[name] - sample, 0.0), sample)
    return found


def _timed(configuration: Configuration, subjects: Sequence[Subject], count: int) -> Iterator[tuple[Asked, float, int]]:
    """The seconds of batches of so many samples, and how many they were."""
    run = configuration.run.model_copy(update={"batch_size": count})
    one = configuration.model_copy(update={"run": run, "seed": configuration.seeds[0], "keep": []})
    spent: dict[Asked, float] = defaultdict(float)
    for subject in subjects:
        size = min(len(subject.x), SINGLE if count == 1 else count)
        places = torch.linspace(0, len(subject.x) - 1, size).round().long()
        part = replace(subject, x=subject.x[places], y=subject.y[places])
        for batch in plan(one, [part], (), "").batches:
            name = (batch.component, subject.model, subject.data)
            if spent[name] < SPENT:
                _, answers = execute(0, batch.job, batch.packed, run.isolate)
                seconds = sum(row.get("seconds") or 0.0 for row in answers.rows)
                spent[name] += seconds
                yield name, seconds, len(batch)
