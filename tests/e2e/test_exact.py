"""The short form of the volume run. The long one: `python -m tests.e2e.exact --minutes 5 --processes 4`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.e2e import exact


async def test_what_the_providers_counted_is_what_the_ledger_holds() -> None:
    with tempfile.TemporaryDirectory(prefix="fbx-exact-") as folder:
        url = f"sqlite+aiosqlite:///{folder}/farebox.db"
        found = await exact.run(Path(folder), url, processes=2, clients=12, seconds=60, most=300)
    print(found)
    assert found["exact"], found
    # Everything that is compared was there to be compared.
    assert found["requests"] == 300
    for each in found["providers"].values():
        assert min(each["upstream"][kind] for kind in ("input", "output", "cache_read")) > 0, found
