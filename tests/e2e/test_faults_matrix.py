"""What becomes of every provider fault, for every backend family and client dialect, compared with what is written down
of it. The two that keep a processor busy are played by `python -m tests.matrix --faults` alone."""

from __future__ import annotations

import pytest

from tests.e2e.yard import Yard
from tests.emulators.scripted import FAULTS
from tests.matrix import faults
from tests.matrix.run import FAULTS_FILE

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


async def test_every_fault_is_told_in_the_clients_dialect_and_metered(yard: Yard) -> None:
    seen = await faults.run(yard, tuple(fault for fault in FAULTS if fault not in faults.HEAVY))
    wrong = [
        f"{each.fault} | {each.family} | {each.dialect} {each.stream}: {each.wrong}" for each in seen if each.wrong
    ]
    assert not wrong, "\n".join(wrong)
    written = FAULTS_FILE.read_text().splitlines()
    missing = [line for line in faults.rendered(seen).splitlines() if line not in written]
    assert not missing, "gateway/FAULTS.md says otherwise: python -m tests.matrix --faults\n" + "\n".join(missing)
