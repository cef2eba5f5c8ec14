"""Any SDK in, any provider out: the whole matrix, run and compared with what is written down of it."""

from __future__ import annotations

import pytest

from tests.e2e.yard import Yard
from tests.matrix.run import FILE, rendered, run

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(420)]


async def test_every_sdk_gets_its_answers_from_every_backend(yard: Yard) -> None:
    cells = await run(yard)
    red = [f"{cell.client} | {cell.feature} | {cell.column}: {cell.told}" for cell in cells if cell.outcome == "red"]
    assert not red, "\n".join(red)
    assert rendered(cells) == FILE.read_text(), "gateway/MATRIX.md says otherwise: python -m tests.matrix"
