"""What a process needs and how it stands, for those who look from outside: asked in the background, never by a request.

Gauges of what is counted elsewhere are read when somebody scrapes; what has to be asked for (Redis, SQL) is asked here
every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final

import structlog
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from gateway.observe.metrics import METRICS

log = structlog.get_logger(__name__)

EVERY_S: Final = 2.0
ASK_S: Final = 5.0
# As a number a rule can compare: 0 is well.
CONDITIONS: Final = {"closed": 0, "half_open": 1, "open": 2, "cooling": 3, "absent": 4}


class Vitals:
    """asked: by name (`redis`, `database`), each raising where it is away."""

    def __init__(self, asked: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
        self._asked = asked

    async def run(self) -> None:
        """Until cancelled."""
        were: dict[str, bool] = {}
        while True:
            for name, ask in self._asked.items():
                up = await _answers(ask)
                METRICS.up(name, up)
                if were.get(name, True) != up:
                    log.log(30 if not up else 20, "is back" if up else "is away", what=name)
                were[name] = up
            await asyncio.sleep(EVERY_S)


async def _answers(ask: Callable[[], Awaitable[object]]) -> bool:
    try:
        async with asyncio.timeout(ASK_S):
            await ask()
    except Exception:
        # Whatever it is, nobody is there who can be worked with; the error itself is told by who needed an answer.
        return False
    return True


class Standing:
    """A gauge family read at each scrape: rows of labels and a value."""

    def __init__(
        self,
        name: str,
        about: str,
        labels: tuple[str, ...],
        rows: Callable[[], Iterable[tuple[tuple[str, ...], float]]],
    ) -> None:
        self.name = name
        self._about = about
        self._labels = labels
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self.name, self._about, labels=self._labels)
        for labels, value in self._rows():
            family.add_metric(labels, value)
        yield family
