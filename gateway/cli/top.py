"""`farebox top`: what happens now, by model, key or provider, on this machine's installation or another's."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter

from gateway.cli.common import DEFAULTS, OK, WRONG_USAGE, Common, Elided, Problem, database, emit, make_table, usd
from gateway.cli.usage import names_of
from gateway.config import Settings

if TYPE_CHECKING:
    from billing.db import AsyncEngine
    from billing.pulse import Pulse

app = App(name="top")

By = Literal["model", "key", "provider", "alias", "project", "deployment"]
Sort = Literal["requests", "tokens", "spend", "errors", "wait"]
RATES = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s", "errors_per_s")


@app.default
async def top(
    *,
    by: By = "model",
    sort: Sort = "requests",
    window: float = 60.0,
    every: float = 2.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    common: Common = DEFAULTS,
) -> int:
    """Watch requests, tokens and spending as they happen. A request counts when it has ended.

    Keys: m k p a: by model, key, provider, alias; r t s e w: sort by requests, tokens, spend, errors, wait for the
    first token; space: hold still; q: leave.

    Parameters
    ----------
    by:
        One line for each of these.
    sort:
        The most of this first.
    window:
        Rates are averages over the last so many seconds.
    every:
        Look again after so many seconds.
    once:
        Look once and print it; for scripts with --json.
    """
    if not (1 <= window <= 86_400 and 0.2 <= every <= 3600):
        raise Problem("--window is 1 to 86400 seconds, --every 0.2 to 3600", code=WRONG_USAGE)
    if once:
        settings = common.settings()
        async with database(settings) as engine:
            value = await look(engine, settings, by, sort, window, time.time_ns())
        emit(common, value, lambda: as_table(value))
        return OK
    from gateway.cli import screen

    return await screen.show(common, by, sort, window, every)


async def look(
    engine: AsyncEngine, settings: Settings, by: str, sort: str, window: float, now_ns: int
) -> dict[str, Any]:
    """One look as plain data: rates a second, money in dollars as text, waits in milliseconds."""
    from billing.db import reading
    from billing.pulse import nothing, pulse

    async with reading(engine) as db:
        found = await pulse(db, by, now_ns - int(window * 10**9), now_ns)
        names = await names_of(db, by)
    total = sum(found, nothing("total"))
    rows = [_rates(each, window) | {"label": names.get(each.name, each.name)} for each in found]
    return {
        "at_ns": now_ns,
        "by": by,
        "sort": sort,
        "window_s": window,
        "total": _rates(total, window),
        "rows": sorted_rows(rows, sort),
        "engine": await _engine(settings),
    }


def sorted_rows(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    def most(row: dict[str, Any]) -> Any:
        return {
            "requests": row["requests"],
            "tokens": row["input_tokens_per_s"] + row["output_tokens_per_s"],
            "spend": row["charge_pusd"],
            "errors": row["failed"],
            "wait": row["first_token_p95_ms"] or 0,
        }[sort]

    return sorted(rows, key=lambda row: (-most(row), row["name"]))


def _rates(pulse: Pulse, window: float) -> dict[str, Any]:
    return {
        "name": pulse.name,
        "requests": pulse.requests,
        "failed": pulse.failed,
        "requests_per_s": round(pulse.requests / window, 3),
        "errors_per_s": round(pulse.failed / window, 3),
        "input_tokens_per_s": round(pulse.input_tokens / window, 2),
        "output_tokens_per_s": round(pulse.output_tokens / window, 2),
        "charge_pusd": pulse.charge_pusd,
        "charge_usd": usd(pulse.charge_pusd),
        "usd_per_hour": usd(int(pulse.charge_pusd * 3600 / window)),
        "first_token_p50_ms": pulse.quantile_ms(0.50),
        "first_token_p95_ms": pulse.quantile_ms(0.95),
    }


async def _engine(settings: Settings) -> dict[str, Any]:
    """The local engine's own word, as far as it can be had in a second."""
    import httpx

    from gateway.embedded.instance import find_running
    from gateway.embedded.secrets import Secrets
    from gateway.observe.engines import RUNNING, WAITING, ask

    url = settings.local.base_url
    if url is None and (running := find_running(settings.data_dir)) is not None:
        url = running.engine_url
    if not settings.local.enabled or url is None:
        return {"state": "off", "model": settings.local.served_name}
    key = Secrets.load(settings).engine_key
    async with httpx.AsyncClient() as client:
        told = await ask(client, url, key or None, 1.0)
    if isinstance(told, str):
        return {"state": "away", "model": settings.local.served_name}
    known = {"running": told.figures.get(RUNNING), "waiting": told.figures.get(WAITING), "kv_cache_used": told.kv_used}
    said = {name: figure for name, figure in known.items() if figure is not None}
    return {"state": "up", "model": settings.local.served_name} | said


def head(value: dict[str, Any]) -> str:
    """Two lines over the table."""
    total, engine = value["total"], value["engine"]
    wait = (
        "-"
        if total["first_token_p50_ms"] is None
        else f"{total['first_token_p50_ms']}/{total['first_token_p95_ms']} ms"
    )
    told = ", ".join(f"{name} {figure:g}" for name, figure in engine.items() if name not in ("state", "model"))
    return (
        f"{total['requests_per_s']:g} requests/s, {total['input_tokens_per_s']:g} tokens/s in, "
        f"{total['output_tokens_per_s']:g} out, {sensible(total['usd_per_hour'])} USD/h, first token {wait}, "
        f"{total['failed']} errors in {value['window_s']:g} s\n"
        f"local engine {engine['state']}" + (f": {engine['model']}, {told}" if told else "")
    )


def sensible(usd_per_hour: str) -> str:
    """What a minute says of an hour is no more exact than this: cents, and of less than a dollar three digits."""
    amount = Decimal(usd_per_hour)
    places = 2 - amount.adjusted() if 0 < amount < 1 else 2
    return f"{amount:.{places}f}"


def as_table(value: dict[str, Any]) -> Any:
    from rich.console import Group

    columns = [value["by"], "req/s", "in/s", "out/s", "USD/h", "p50 ms", "p95 ms", "errors"]
    shown = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s", "usd_per_hour", "first_token_p50_ms",
             "first_token_p95_ms", "failed")  # fmt: skip
    rows = [row | {"usd_per_hour": sensible(row["usd_per_hour"])} for row in value["rows"]]
    cells = [[Elided(row["label"]), *(row[name] for name in shown)] for row in rows]
    return Group(head(value), "", make_table(columns, cells, right=columns[1:]))


def decode(text: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(text)
    return found
