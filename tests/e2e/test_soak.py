"""The short form of the soak: every link spoilt, a process killed. `python -m tests.e2e.soak` is the long one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests import services
from tests.e2e import soak


async def test_with_faults_on_every_link_no_request_is_stuck_and_the_books_are_right() -> None:
    with services.own_postgres() as url, tempfile.TemporaryDirectory(prefix="fbx-soak-") as folder:
        found = await soak.run(Path(folder), url, seconds=10, processes=2, rate=30, seed=5, kill_each_s=4)
    print(found)
    for name in ("lost", "double", "holds_left", "debits_minus_credits", "stuck", "in_flight_left"):
        assert found[name] == 0, found
    assert found["tokens_upstream"] == found["tokens_ledger"] > 0, found
    assert not found["odd"], found
    assert found["fds_more"] < 60, found
    # It has to have hurt on every link.
    assert found["kills"] >= 1, found
    for link in ("client", "upstream", "redis", "sql"):
        assert any(name.startswith(link) for name in found["faults"]), found
