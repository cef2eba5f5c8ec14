"""How fast money moves here: `nice python -m tests.billing.bench [folder]`, on the disk that the folder is on.

Prints one line of JSON for each number. The numbers of one run are in billing/README.md, with their machine.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from billing import ledger
from billing.accounts import Scope
from billing.db import create_engine, reading
from billing.journal import Journal
from billing.migrate import upgrade
from billing.statements import Dimension, spent, usage_by
from billing.worker import Worker
from tests import services
from tests.billing.make import BOOK, intent, record

ROWS = 20_000


def report(what: str, **numbers: float) -> None:
    print(json.dumps({"what": what, **{name: round(value, 1) for name, value in numbers.items()}}), flush=True)


async def settle(folder: Path, concurrent: int, each: int) -> None:
    book = Journal.open(folder / f"journal-{concurrent}", "bench")
    latencies: list[float] = []
    # Made beforehand: what is measured is the journal.
    work = [[(intent(f"r{k}-{i}"), record(f"r{k}-{i}")) for i in range(each)] for k in range(concurrent)]

    async def one(k: int) -> None:
        for before, after in work[k]:
            start = time.perf_counter()
            book.intent(before)
            await book.settle(after)
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(one(k) for k in range(concurrent)))
    seconds = time.perf_counter() - start
    await book.close()
    latencies.sort()
    report(
        f"intent and settle, {concurrent} at once",
        per_s=len(latencies) / seconds,
        p50_us=latencies[len(latencies) // 2] * 1e6,
        p99_us=latencies[len(latencies) * 99 // 100] * 1e6,
    )


async def intents(folder: Path) -> None:
    book = Journal.open(folder / "journal-intents", "bench")
    made = [intent(f"r{i}") for i in range(20_000)]
    start = time.perf_counter()
    for one in made:
        book.intent(one)
    report("intent alone", us=(time.perf_counter() - start) / len(made) * 1e6)
    await book.close()


async def ship(folder: Path, url: str, name: str) -> None:
    book = Journal.open(folder / f"journal-{name}", "bench")
    for start in range(0, ROWS, 1000):
        made = range(start, start + 1000)
        await asyncio.gather(*(book.settle(record(f"r{i}", organisation_id=f"org_{i % 20}")) for i in made))
    await book.close()
    engine = create_engine(url)
    begun = time.perf_counter()
    assert await Worker(folder / f"journal-{name}", engine, BOOK).ship_once() == ROWS
    report(f"ship to {name}", rows_per_s=ROWS / (time.perf_counter() - begun))
    async with reading(engine) as db:
        begun = time.perf_counter()
        await usage_by(db, Dimension.KEY)
        report(f"usage by key over {ROWS} rows on {name}", ms=(time.perf_counter() - begun) * 1e3)
        begun = time.perf_counter()
        await spent(db, Scope.KEY, "key_1")
        report(f"spent of one key with {ROWS} rows on {name}", ms=(time.perf_counter() - begun) * 1e3)
        assert (await ledger.trial_balance(db)).sound
    await engine.dispose()


@contextlib.contextmanager
def folder_for(arguments: list[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as name:
        yield Path(name)


def main() -> None:
    with folder_for(sys.argv[1:]) as folder:
        asyncio.run(intents(folder))
        asyncio.run(settle(folder, 1, 2000))
        asyncio.run(settle(folder, 64, 300))
        asyncio.run(settle(folder, 256, 100))
        sqlite = f"sqlite:///{folder}/bench.db"
        asyncio.run(upgrade(sqlite))
        asyncio.run(ship(folder, sqlite, "sqlite"))
        with services.postgres() as databases, databases.clone() as url:
            asyncio.run(ship(folder, url, "postgresql"))


if __name__ == "__main__":
    main()
