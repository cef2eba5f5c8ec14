"""Counters and histograms as plain numbers, read when somebody scrapes. prometheus_client's own take a lock and five
calls for each addition; a request makes ten, which cost more CPU than parsing it (2026-11)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

Labels = tuple[str, ...]


class Tally:
    """A counter for each combination of labels, which are bounded by whoever counts."""

    __slots__ = ("_about", "_counts", "_labels", "_name")

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._counts: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, labels: Labels = (), count: float = 1.0) -> None:
        self._counts[labels] = self._counts.get(labels, 0.0) + count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class Spread:
    """A histogram for each combination of labels. bounds: ascending, in the unit of what is observed."""

    __slots__ = ("_about", "_bounds", "_counts", "_labels", "_name", "_sums")

    def __init__(self, name: str, about: str, labels: Labels, bounds: Sequence[float]) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._bounds = bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, value: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), self._sums[labels])
        yield family
