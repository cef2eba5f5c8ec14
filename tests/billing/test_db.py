"""What the database driver does to us when a request, or the whole process, ends in the middle of a statement."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

from billing.db import create_engine, writing

WITHIN_S = 30.0


def test_a_writer_cancelled_twice_does_not_keep_the_loop_from_ending(tmp_path: Path) -> None:
    path = tmp_path / "farebox.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    async def work() -> None:
        engine = create_engine(f"sqlite:///{path}")
        async with writing(engine) as db:
            await db.exec_driver_sql("CREATE TABLE t (a INTEGER)")
        holder.execute("BEGIN IMMEDIATE")

        async def write() -> None:
            async with writing(engine) as db:
                await db.exec_driver_sql("INSERT INTO t VALUES (1)")

        writer = asyncio.create_task(write())
        # It waits for the lock in its connection's thread; cancelled, for that thread's word that it has closed.
        for _ in range(2):
            for _ in range(200):
                await asyncio.sleep(0)
            writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        threading.Timer(0.2, holder.execute, ("ROLLBACK",)).start()
        await engine.dispose()

    ended = threading.Thread(target=asyncio.run, args=(work(),), daemon=True)
    ended.start()
    ended.join(WITHIN_S)
    assert not ended.is_alive()
    assert holder.execute("SELECT count(*) FROM t").fetchone() == (0,)
    holder.close()
