"""`farebox demo`: a sample organisation with a month of usage, live traffic, and all of it gone again."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from gateway.cli.common import (
    CHANGES,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Problem,
    database,
    emit,
    make_table,
    progress,
)
from gateway.cli.keys import key_admin
from gateway.cli.site import acting

if TYPE_CHECKING:
    from billing.db import AsyncEngine
    from gateway.admission.key_admin import KeyAdmin
    from gateway.moving.sample import Made, Sample

app = App(name="demo")

ACTOR = "farebox demo"
FLAG = Parameter(negative="")


@app.default
async def demo(
    *,
    clear: Annotated[bool, FLAG] = False,
    traffic: Annotated[bool, FLAG] = False,
    model: str | None = None,
    days: int = 30,
    a_day: int = 150,
    seconds: int = 60,
    rate: float = 3.0,
    common: Changes = CHANGES,
) -> int:
    """Fill an installation with samples to look at: everything is called "sample" and adds up in the ledger.

    Nothing is asked of a provider, unless --model names one of yours.

    Parameters
    ----------
    clear:
        Take every sample out again, and nothing else. Only the audit log remembers.
    traffic:
        Afterwards go on with live requests, for `farebox top` and the dashboard.
    model:
        With --traffic: real requests for this model, through the gateway that runs here. They cost what it costs.
    days:
        So many days of history, up to now.
    a_day:
        Requests on a working day.
    seconds:
        How long the live requests go on.
    rate:
        Live requests a second.
    """
    from gateway.moving import sample

    if not (0 < days <= 400 and 0 < a_day <= 20_000 and 0 < seconds <= 86_400 and 0 < rate <= 100):
        raise Problem(
            "--days is 1 to 400, --a-day 1 to 20000, --seconds 1 to 86400, --rate up to 100", code=WRONG_USAGE
        )
    if clear and traffic:
        raise Problem("--clear or --traffic", fix="one after the other", code=WRONG_USAGE)
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        if clear:
            gone = await sample.clear(engine, keys)
            emit(common, {"removed": gone}, lambda: make_table(["table", "rows"], list(gone.items()), right=["rows"]))
            return OK
        value = await _history(common, engine, keys, days, a_day)
        if traffic and not common.dry_run:
            value["live"] = await _traffic(common, engine, keys, model, seconds, rate)
    emit(common, value, lambda: _said(value))
    return OK if value.get("live", {}).get("failed", 0) == 0 else NOT_WELL


async def _history(common: Changes, engine: AsyncEngine, keys: KeyAdmin, days: int, a_day: int) -> dict[str, Any]:
    from gateway.moving.sample import NAME, ORGANISATION

    now_ns = time.time_ns()
    made = await _sample(engine, keys, now_ns)
    if not made.priced:
        raise Problem("no sample model has a price", fix="`farebox migrate` brings the shipped prices")
    new_keys = await made.found(now_ns)
    requests = skipped = charged = 0
    with progress(common, "days", days) as advance:
        for day in made.history(days, a_day, now_ns):
            added = await _book(engine, day)
            requests += len(added)
            skipped += len(day) - len(added)
            charged += sum(each.charge.sale_pusd for each in added)
            advance(1)
    return {
        "organisation": ORGANISATION,
        "name": NAME,
        "keys": [] if common.dry_run else [{"name": name, "key": key} for name, key in new_keys.items()],
        "requests": requests,
        "skipped": skipped,
        "charged_pusd": charged,
    }


async def _sample(engine: AsyncEngine, keys: KeyAdmin, now_ns: int) -> Sample:
    from billing.db import writing
    from billing.pricelist import load_prices
    from gateway.moving.sample import Sample

    async with writing(engine) as db:
        book = await load_prices(db)
    return Sample(engine, keys, book, acting(ACTOR), now_ns)


async def _book(engine: AsyncEngine, made: list[Made]) -> list[Made]:
    """Returns: those that were not there yet."""
    from billing.db import writing
    from billing.worker import book

    if not made:
        return []
    async with writing(engine) as db:
        new = {record.id for record, _ in await book(db, [(each.record, each.charge) for each in made])}
    return [each for each in made if each.record.id in new]


async def _traffic(
    common: Changes, engine: AsyncEngine, keys: KeyAdmin, model: str | None, seconds: int, rate: float
) -> dict[str, Any]:
    """About so many requests a second, at random times."""
    made = await _sample(engine, keys, time.time_ns())
    await made.found(time.time_ns())
    chance = random.Random()  # noqa: S311 - samples
    until, asked, failed = time.monotonic() + seconds, 0, 0
    ask = None if model is None else await _asking(common, keys, model)
    begun = time.monotonic()
    with progress(common, "seconds of traffic", seconds) as advance:
        told = 0
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(chance.expovariate(rate), left))
            asked += 1
            if ask is not None:
                failed += not await ask()
            elif (one := made.request(f"sample:live:{secrets.token_hex(8)}", time.time_ns(), chance)) is not None:
                await _book(engine, [one])
            gone = min(seconds, int(time.monotonic() - begun))
            advance(gone - told)
            told = gone
    return {"requests": asked, "failed": failed, "model": model, "real": model is not None}


async def _asking(common: Changes, keys: KeyAdmin, model: str) -> Any:
    """What sends one real request with a sample key of its own. Returns: whether it was answered."""
    import httpx

    from gateway.admission.key_admin import KeyTerms
    from gateway.embedded.instance import find_running
    from gateway.moving.sample import MARK, PROJECTS

    settings = common.settings()
    running = find_running(settings.data_dir)
    url = settings.base_url if running is None else running.base_url
    now_ns = time.time_ns()
    new = await keys.create_key(
        project_id=f"proj_sample_{PROJECTS[0][0]}", name=f"{MARK}traffic", actor=acting(ACTOR), now_ns=now_ns,
        terms=KeyTerms(expires_at_ns=now_ns + 86_400 * 10**9, models=(model,)),
    )  # fmt: skip
    headers = {"authorization": f"Bearer {new.plain}", "x-farebox-tags": "sample"}
    body = {"model": model, "max_tokens": 24, "messages": [{"role": "user", "content": "Say hello to a sample."}]}

    async def ask() -> bool:
        async with httpx.AsyncClient(timeout=60.0) as client:
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            except httpx.HTTPError as error:
                problem = f"no gateway answers at {url}: {type(error).__name__}"
                raise Problem(problem, fix="start `farebox up`, or leave --model out") from error
        return answer.status_code == 200

    return ask


def _said(value: dict[str, Any]) -> str:
    from billing.money import format_usd

    lines = [
        f"{value['name']}: {value['requests']} requests for {format_usd(value['charged_pusd'])} USD"
        + (f", {value['skipped']} were there before" if value["skipped"] else ""),
        *(f"  key {each['name']}: {each['key']}" for each in value["keys"]),
    ]
    if live := value.get("live"):
        lines.append(f"{live['requests']} live requests" + (f" for {live['model']}" if live["model"] else ""))
    return "\n".join([*lines, "farebox demo --clear takes all of it away again."])
