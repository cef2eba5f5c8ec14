"""Chores: each when it is due, by one worker at a time, taken over from the dead, again after a failure."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import schema
from billing.chores import Chore, Chores
from billing.db import reading

S = 10**9


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        return self.now_ns


async def told(engine: AsyncEngine) -> dict[str, object]:
    async with reading(engine) as db:
        return dict((await db.execute(select(schema.chores))).mappings().one())


async def test_many_workers_do_a_chore_once_and_again_when_it_is_due(fresh_engine: AsyncEngine) -> None:
    clock, done = Clock(), []

    async def do(now_ns: int) -> int:
        done.append(now_ns)
        return 1

    workers = [Chores(fresh_engine, [Chore("sweep", 60, do)], f"w{n}", clock) for n in range(8)]
    for minute in range(1, 4):
        await asyncio.gather(*(worker.once() for worker in workers))
        assert len(done) == minute
        clock.now_ns += 59 * S
        await asyncio.gather(*(worker.once() for worker in workers))
        assert len(done) == minute
        clock.now_ns += 1 * S


async def test_a_failure_is_written_down_and_tried_again_soon(fresh_engine: AsyncEngine) -> None:
    clock, tries = Clock(), []

    async def do(now_ns: int) -> int:
        tries.append(now_ns)
        if len(tries) == 1:
            raise ValueError("the cellar is locked")
        return 0

    worker = Chores(fresh_engine, [Chore("sweep", 86_400, do)], "w", clock)
    assert await worker.once() == []
    assert (await told(fresh_engine))["problem"] == "ValueError: the cellar is locked"
    clock.now_ns += 30 * S
    assert await worker.once() == ["sweep"]
    row = await told(fresh_engine)
    assert (row["problem"], row["holder"], row["done_ns"], row["due_ns"]) == (
        None, None, clock.now_ns, clock.now_ns + 86_400 * S,
    )  # fmt: skip


CHILD = """
import asyncio, sys, time
from billing.chores import Chore, Chores
from billing.db import create_engine

async def forever(now_ns):
    print("begun", flush=True)
    await asyncio.Event().wait()

async def main():
    sweep = Chore("sweep", 60, forever, lease_s=100)
    await Chores(create_engine(sys.argv[1]), [sweep], "child", lambda: 1000 * 10**9).once()

asyncio.run(main())
"""


async def test_what_a_killed_worker_had_begun_is_done_after_its_lease(
    fresh_database_url: str, fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, fresh_database_url, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"begun\n"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    clock, done = Clock(), []

    async def do(now_ns: int) -> int:
        done.append(now_ns)
        return 1

    worker = Chores(fresh_engine, [Chore("sweep", 60, do)], "w", clock)
    clock.now_ns += 99 * S
    assert await worker.once() == []
    clock.now_ns += 1 * S
    assert await worker.once() == ["sweep"]
    assert len(done) == 1


async def test_no_chore_goes_on_alone(fresh_engine: AsyncEngine) -> None:
    """Neither beside one that could not be claimed, nor behind whoever ended them all: what they use is closed then."""
    begun, ended = asyncio.Event(), []

    async def long(_: int) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _turn in range(100):  # As a transaction that is taken back.
                await asyncio.sleep(0)
            ended.append("long")
        return 0

    async def short(_: int) -> int:
        await asyncio.Event().wait()
        return 0

    class Unlucky(Chores):
        async def _claim(self, chore: Chore) -> bool:
            if chore.name == "away":
                await begun.wait()
                raise OSError("the database is away")
            return await super()._claim(chore)

    chores = [Chore("away", 60, short), Chore("short", 60, short), Chore("long", 60, long)]
    running = asyncio.create_task(Unlucky(fresh_engine, chores, "w", Clock()).once())
    async with asyncio.timeout(60):
        await begun.wait()
        for _turn in range(100):
            await asyncio.sleep(0)
        assert not running.done()
        running.cancel()
        await asyncio.wait({running})
    assert (running.cancelled(), ended) == (True, ["long"])


async def test_it_stops_when_told_and_outlives_a_database_that_is_away(tmp_path: Path) -> None:
    from billing.db import create_engine

    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")  # No table of chores in it.
    stop = asyncio.Event()
    running = asyncio.create_task(Chores(engine, [], "w", Clock(), look_s=0.001).run(stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(running, 10)
    await engine.dispose()
