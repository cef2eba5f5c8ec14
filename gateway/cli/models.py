"""`farebox models`: what can be asked for, and the local engine's weights.

The engine's package is another process's: its catalogue is asked by command line, never imported.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from gateway.cli.common import (
    AWAY,
    CHANGES,
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    emit,
    make_table,
)
from gateway.cli.offering import catalogue, in_force
from gateway.cli.site import acting
from gateway.config import Settings, child_environment

app = App(name="models")

ACTOR = "farebox models"


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the models that requests may name, and the local ones that are fetched or can be."""
    told = common.settings()
    settings, document, _ = await in_force(told)
    fetched = (await _catalogue(told, "list"))["models"]
    available = (await _catalogue(told, "available"))["models"]
    here = {model["name"] for model in fetched}
    rows = [
        {"model": entry.alias, "where": ", ".join(f"{d.provider}/{d.model}" for d in entry.deployments)}
        for entry in settings.models
    ]
    rows += [
        {"model": entry.place, "where": f"{entry.provider}, as {name}"} for name, entry in document.deployments.items()
    ]
    rows += [{"model": model["name"], "where": "local, fetched", "bytes": model["bytes"]} for model in fetched]
    rows += [
        {
            "model": model["name"],
            "where": f"local, {model['download_bytes'] // 10**6} MB to fetch",
            "licence": model["licence"],
        }
        for model in available
        if model["name"] not in here
    ]
    rows += [
        {"model": f"{name}/MODEL", "where": "every model of the price book: `farebox prices list`"}
        for name, provider in settings.providers.items()
        if provider.enabled
    ]
    emit(common, {"models": rows}, lambda: make_table(["model", "where"], [[r["model"], r["where"]] for r in rows]))
    return OK


@app.command
async def add(
    place: str,
    /,
    *,
    name: str | None = None,
    price: str | None = None,
    price_as: str | None = None,
    use: str | None = None,
    region: str | None = None,
    residency: str | None = None,
    zdr: Annotated[bool, Parameter(negative="")] = False,
    context_window: int | None = None,
    max_output_tokens: int | None = None,
    max_parallel: int | None = None,
    replace: Annotated[bool, Parameter(negative="")] = False,
    common: Changes = CHANGES,
) -> int:
    """Say what is to be known of a provider's model: price, limits, tags. Without this it can be asked for as well, if
    the price book has a price for it.

    Parameters
    ----------
    place:
        PROVIDER/MODEL, the model by the provider's own name.
    name:
        What aliases name it by; the place, if left out.
    price:
        INPUT,OUTPUT in USD per million tokens, as 0.15,0.60.
    price_as:
        Sold at the price of this PROVIDER/MODEL of the price book.
    use:
        A stored credential in place of the provider's own: the same model by another account.
    region, residency:
        Where it is, and where what is sent there stays.
    zdr:
        You have it in writing that nothing sent there is kept.
    context_window, max_output_tokens, max_parallel:
        Its limits: tokens, and requests at once by each gateway process.
    replace:
        Change one that is there.
    """
    from decimal import Decimal, InvalidOperation

    from gateway.catalogue.document import DeploymentEntry, plain
    from gateway.offered import PriceSettings

    provider, slash, model = place.partition("/")
    if not slash or not model:
        raise Problem(f"{place!r} is no PROVIDER/MODEL", fix="as east/amazon.nova-pro-v1:0", code=WRONG_USAGE)
    own = None
    if price is not None:
        try:
            given, answered = map(Decimal, price.split(","))
        except (InvalidOperation, ValueError) as error:
            raise Problem(f"{price!r} is no price", fix="INPUT,OUTPUT as 0.15,0.60", code=WRONG_USAGE) from error
        own = PriceSettings(input=given, output=answered)
    entry = DeploymentEntry(
        provider=provider, model=model, price=own, price_as=price_as, credential=use, region=region,
        residency=residency, zdr=zdr, context_window=context_window, max_output_tokens=max_output_tokens,
        max_parallel=max_parallel,
    )  # fmt: skip
    async with catalogue(common) as changes:
        await changes.put(
            "deployments", name or entry.place, entry, actor=acting(ACTOR), now_ns=time.time_ns(), fresh=not replace
        )
    emit(common, {"model": name or entry.place, "entry": plain(entry)}, lambda: f"{entry.place} is on offer")
    return OK


@app.command
async def remove(name: str, /, *, common: Changes = CHANGES) -> int:
    """Forget what was said of a model with `models add`. Local weights go with `models rm`.

    Parameters
    ----------
    name:
        As it was added.
    """
    async with catalogue(common) as changes:
        await changes.remove("deployments", name, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"model": name, "removed": True}, lambda: f"{name} is gone")
    return OK


@app.command
async def pull(name: str, /, *, common: Common = DEFAULTS) -> int:
    """Fetch a model for the local engine: a catalogue name, hf:owner/repository, or a GGUF file.

    Parameters
    ----------
    name:
        `farebox models list` shows the catalogue.
    """
    from gateway.cli.progress import pull_with_progress

    path = await pull_with_progress(name, common.settings().data_dir, quiet=common.json)
    emit(common, {"model": name, "path": str(path)}, lambda: f"{name} is in {path}")
    return OK


@app.command
async def rm(name: str, /, *, common: Common = DEFAULTS) -> int:
    """Remove a fetched model.

    Parameters
    ----------
    name:
        As `farebox models list` shows it.
    """
    removed = (await _catalogue(common.settings(), "rm", name))["removed"]
    emit(common, {"model": name, "removed": removed}, lambda: f"{name} removed" if removed else f"no model {name} here")
    return OK if removed else NOT_WELL


async def _catalogue(settings: Settings, action: str, *arguments: str) -> dict[str, Any]:
    """Raises: Problem with the catalogue's own words."""
    argv = [
        sys.executable,
        "-m",
        "local_backend.catalogue",
        action,
        *arguments,
        "--data",
        str(settings.data_dir),
        "--json",
    ]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=child_environment({})
    )
    out, errors = await process.communicate()
    lines = out.splitlines()
    if process.returncode != 0 or not lines:
        said = msgspec.json.decode(lines[-1])["message"] if lines else errors.decode(errors="replace")[-1000:]
        raise Problem(said, code=AWAY)
    result: dict[str, Any] = msgspec.json.decode(lines[-1])
    return result
