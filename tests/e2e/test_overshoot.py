"""The short form of `python -m tests.e2e.overshoot`: no kind of budget is overdrawn beyond its written bound."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.e2e import overshoot

REQUESTS = 90  # For each kind, all at once.


@pytest.mark.timeout(240)
async def test_no_kind_of_budget_is_overdrawn_by_many_requests_at_many_processes() -> None:
    with tempfile.TemporaryDirectory(prefix="fbx-over-") as name:
        found = await overshoot.run(Path(name), processes=3, requests=REQUESTS)
    print(overshoot.table(found))
    for each in found:
        assert not each.odd, each
        assert each.admitted + each.refused == REQUESTS, each
        if each.bound_pusd is None:
            assert each.admitted == REQUESTS, each
            assert each.overshoot_pusd > 0, each
        else:
            assert each.overshoot_pusd <= each.bound_pusd, each
            # Not by refusing everybody: holds are a worst case, so fewer than half fit at once.
            assert REQUESTS // 10 < each.admitted < REQUESTS * 0.65, each
