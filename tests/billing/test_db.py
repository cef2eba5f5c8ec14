"""What the database driver does to us when a request, or the whole process, ends in the middle of a statement."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

from billing.db import create_engine, writing

WITHIN_S = 30.0


def test_a_writer_cancelled_twice_does_not_keep_the_loop_from_ending(tmp_path: Path) -> None:
    runs, goes_on = threading.Event(), threading.Event()

    def block() -> int:
        runs.set()
        return int(goes_on.wait(WITHIN_S))

    async def work() -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'farebox.db'}")

        async def write() -> None:
            async with writing(engine) as db:
                driver: Any = (await db.get_raw_connection()).driver_connection
                await driver.create_function("block", 0, block)
                await db.exec_driver_sql("SELECT block()")

        writer = asyncio.create_task(write())
        await asyncio.to_thread(runs.wait, WITHIN_S)
        # Cancelled in the statement, it waits for its connection's thread to say that it has closed; and again in that.
        for _ in range(2):
            writer.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        # The loop ends while the closing still waits for the thread, as when a process stops.
        asyncio.get_running_loop().call_soon(threading.Timer(0.2, goes_on.set).start)

    ended = threading.Thread(target=asyncio.run, args=(work(),), daemon=True)
    ended.start()
    ended.join(WITHIN_S)
    assert not ended.is_alive()
    assert runs.is_set()
