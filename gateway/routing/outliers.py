"""Who fails clearly more than its peers: found before a breaker would open, and only by comparison.

A breaker judges a deployment by itself, at half of its calls failing. One that fails a quarter of them while its peers
fail none is seen only beside them; where all fail alike, the fault is not the deployment's. Pure, and without a memory
of its own: it goes by the last half minute's calls, so who was set behind has its turn again when they are forgotten.

After Envoy's outlier detection (read 2026-11): a floor of calls, a distance from the others, a bound on how many. Its
distance in standard deviations needs a hundred hosts to mean anything; ours is from the median of the others. Times are
not compared: a long prompt is late by nature, and the strategies know how quickly each one reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final

from gateway.routing.health import JUDGED_CALLS, Standing

# Of its calls: so much more than the median of its peers has to fail.
WORSE_BY: Final = 0.2


def outliers(peers: Iterable[tuple[str, Standing]]) -> Mapping[str, str]:
    """peers: deployments that are well and equal, and how they do. Returns: who is to be tried behind the others, and
    why; never more than half of those that can be judged, the worst first."""
    judged = {name: each for name, each in peers if each.calls >= JUDGED_CALLS}
    found: list[tuple[float, str, str]] = []
    for name, mine in judged.items():
        share = mine.failed_share
        if share < WORSE_BY:
            continue
        others = [each.failed_share for other, each in judged.items() if other != name]
        if others and share >= (usual := median(others)) + WORSE_BY:
            why = f"{share:.0%} of its last {mine.calls} calls failed, of its peers' {usual:.0%}"
            found.append((-share, name, why))
    return {name: why for _, name, why in sorted(found)[: len(judged) // 2]}
