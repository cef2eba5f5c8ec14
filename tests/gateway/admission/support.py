"""What several of these tests need: people, prices, and a relay that can cut or freeze the way to Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from redis.asyncio import Redis

from billing.prices import PriceSheet, Rates, make_sheet
from billing.usage import Meter
from gateway.admission.limits import Assemble, Limiter, Scopes, Spending, Spent, scopes_of
from gateway.admission.link import Link
from gateway.admission.principal import Budget, Facts, Limit, Principal

ORGANISATION, PROJECT = "org_1", "prj_1"
NOW_MS = 1_795_392_000_000  # 2026-11-23
NOW_NS = NOW_MS * 1_000_000
DAY_MS = 86_400_000
PEPPER = b"pepper of the tests, 32 bytes...."


def principal(*limits: Limit, budgets: tuple[Budget, ...] = (), key_id: str = "key_1") -> Principal:
    return Principal(key_id, "public", "test", ORGANISATION, PROJECT, None, limits, budgets)


def scopes(*limits: Limit, budgets: tuple[Budget, ...] = (), end_user: str | None = None) -> Scopes:
    return scopes_of(principal(*limits, budgets=budgets), Facts(end_user=end_user), NOW_MS)


def total(limit_pusd: int, scope: str = "key", scope_id: str = "key_1") -> Budget:
    return Budget(scope, scope_id, limit_pusd)


def books(*pusd: int) -> Spent:
    """SQL that says it charged these amounts, one after the other and the last for ever, to nobody in particular."""
    amounts = list(pusd)

    async def spent(budget: Budget, start_ns: int, asked: Sequence[str]) -> Spending:
        await asyncio.sleep(0)
        return Spending(amounts.pop(0) if len(amounts) > 1 else amounts[0])

    return spent


@contextlib.asynccontextmanager
async def limiter(
    redis: Redis, spent: Spent | None = None, owner: str = "alone", assemble: Assemble | None = None
) -> AsyncIterator[Limiter]:
    link = Link(redis)
    try:
        yield Limiter(link, spent or books(0), owner, assemble)
    finally:
        await link.aclose()


async def evict_budgets(redis: Redis, where: Scopes) -> None:
    """As a Redis does that runs out of memory: the counters are made anew from SQL and what all gateways hold."""
    await redis.delete(where.muster, *where.budget_keys)


def sheet(input_pusd: int = 2, output_pusd: int = 10, model: str = "small", **more: int) -> PriceSheet:
    sale = {Meter.INPUT_TOKENS: input_pusd, Meter.OUTPUT_TOKENS: output_pusd}
    sale |= {Meter(name): price for name, price in more.items()}
    return make_sheet(f"price_{model}", "local", model, 0, Rates(sale, dict(sale)), "test")


class Relay:
    """A Unix socket in front of another one. `cut` ends its connections and takes no new ones; `freeze` keeps them
    and lets nothing through."""

    def __init__(self, path: Path, target: str) -> None:
        self._path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._path.unlink(missing_ok=True)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            return
        finally:
            self._writers -= {writer, back}
            for end in (writer, back):
                end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()
        sink.close()


@contextlib.asynccontextmanager
async def relay_to(redis_url: str, folder: Path) -> AsyncIterator[Relay]:
    relay = Relay(folder / "relay.sock", redis_url.removeprefix("unix://").partition("?")[0])
    await relay.open()
    try:
        yield relay
    finally:
        relay.thaw()
        await relay.cut()


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait for a (possibly awaitable) condition to hold. Fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.005)
