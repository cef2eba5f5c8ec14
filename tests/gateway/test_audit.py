"""The audit log's chain: what was changed behind its back shows, on both databases."""

import pytest
from sqlalchemy import delete, update

from billing.db import create_engine, reading, writing
from gateway import audit, schema


async def _three(url: str) -> None:
    engine = create_engine(url)
    for n in range(3):
        async with writing(engine) as db:
            await audit.append(
                db, actor="ann", action="keys.create", subject=f"key_{n}", at_ns=10**18 + n,
                before=None if n else {"z": 1, "a": ["x", None, True], "ü": {"b": 2, "a": 10**15}}, after={"n": n},
            )  # fmt: skip
    await engine.dispose()


async def _verdict(url: str) -> audit.Verdict:
    engine = create_engine(url)
    async with reading(engine) as db:
        found = await audit.verify(db)
    await engine.dispose()
    return found


async def test_an_untouched_chain_is_whole(fresh_database_url: str) -> None:
    assert (await _verdict(fresh_database_url)).head == bytes(32).hex()
    await _three(fresh_database_url)
    found = await _verdict(fresh_database_url)
    assert (found.rows, found.broken_at) == (3, None)


@pytest.mark.parametrize(
    ("change", "broken_at"),
    [
        (update(schema.audit).where(schema.audit.c.id == 2).values(actor="bob"), 2),
        (update(schema.audit).where(schema.audit.c.id == 1).values(after={"n": 7}), 1),
        (delete(schema.audit).where(schema.audit.c.id == 2), 3),
    ],
    ids=["actor", "value", "removed"],
)
async def test_a_change_behind_its_back_shows(fresh_database_url: str, change: object, broken_at: int) -> None:
    await _three(fresh_database_url)
    engine = create_engine(fresh_database_url)
    async with writing(engine) as db:
        await db.execute(change)  # type: ignore[call-overload]
    await engine.dispose()
    assert (await _verdict(fresh_database_url)).broken_at == broken_at
