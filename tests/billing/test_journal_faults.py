"""The n-th call to the disk fails, once, for every n and in every way that it can. A journal is open by then: one that
cannot begin is none (`Journal.open` raises)."""

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from billing import journal
from billing.errors import JournalUnavailable
from billing.journal import Journal
from billing.prices import BATCH
from billing.usage import Intent, Meter, Outcome, UsageRecord
from tests.billing.make import intent, record
from tests.billing.test_journal import ids, until_available


class Nth:
    """Calls of one kind, of which the n-th fails. Works on whatever is called through it."""

    def __init__(self, n: int, fail: Callable[..., Any]) -> None:
        self.left = n
        self._fail = fail

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            return self._fail(real, *args, **kwargs) if self.left == 0 else real(*args, **kwargs)

        return called


def error(number: int) -> Callable[..., Any]:
    def fail(_: Callable[..., Any], *__: Any, **___: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def half(real: Callable[..., Any], file: int, data: bytes) -> Any:
    return real(file, data[: len(data) // 2])


WAYS: dict[str, tuple[str, Callable[..., Any]]] = {
    "write, no space": ("write", error(errno.ENOSPC)),
    "write, input/output": ("write", error(errno.EIO)),
    "write, half of it": ("write", half),
    "sync": ("sync", error(errno.EIO)),
    "open": ("open", error(errno.EMFILE)),
    "rename": ("rename", error(errno.EIO)),
    "sync of the folder": ("fsync", error(errno.EIO)),
}


class Attempt:
    """What one gateway was told of its requests."""

    def __init__(self, book: Journal) -> None:
        self.book = book
        self.settled: set[str] = set()
        self.refused: set[str] = set()

    async def ask(self, number: int, **changes: Any) -> None:
        request_id = f"r{number}"
        try:
            self.book.intent(intent(request_id))
        except JournalUnavailable:
            self.refused.add(request_id)
            return
        self.settled.add(request_id)
        with suppress(JournalUnavailable):  # It is kept, and written to the next segment.
            await self.book.settle(record(request_id, **changes))


@pytest.mark.parametrize("way", list(WAYS))
async def test_the_nth_call_fails_for_every_n(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of one kilobyte, so that most of it is the making of new ones: charged requests, one that came to
    nothing, a line of a batch, several at once. Whoever was told that it is written finds it; whoever was refused is
    not in it; what was settled and refused is in it once the disk takes it."""
    name, fail = WAYS[way]
    n = 0
    while True:
        n += 1
        folder, nth = tmp_path / str(n), Nth(n, fail)
        book = Journal.open(folder, "gateway", segment_bytes=1_000)
        told = Attempt(book)
        with monkeypatch.context() as patch:
            if name == "sync":
                patch.setattr(journal, "_to_stable_storage", nth.around(journal._to_stable_storage))
            else:
                patch.setattr(os, name, nth.around(getattr(os, name)))
            await told.ask(0)
            await told.ask(1, quantities={}, outcome=Outcome.REJECTED)
            await told.ask(2, variant=BATCH, quantities={Meter.REQUESTS: 1})
            await asyncio.gather(*(told.ask(number) for number in range(3, 9)))
        await until_available(book)
        assert (book.unavailable, book.unsynced_records, book.open_intents) == (None, 0, 0), n
        await book.close()
        assert set(ids(folder, UsageRecord)) >= told.settled, n
        assert not set(ids(folder, Intent)) & told.refused, n
        if nth.left > 0:
            break
    assert n > 1, "nothing of this kind was called"
