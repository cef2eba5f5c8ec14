"""`farebox bench`: how fast is this gateway, measured from outside; `bench serve` is the gateway to measure."""

from __future__ import annotations

import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from gateway.cli.common import AWAY, LOCAL, NOT_WELL, OK, Local, Problem, emit, make_table

if TYPE_CHECKING:
    from gateway.cli.load import Outcome
    from gateway.cli.ride import Ride
    from gateway.config import Settings
    from gateway.embedded.bootstrap import First

app = App(name="bench")


@app.default
def run(
    *,
    url: str = "http://127.0.0.1:4000",
    key: Annotated[str, Parameter(env_var="OPENAI_API_KEY")],
    model: str = "smollm2-135m-instruct",
    concurrency: int = 16,
    seconds: float = 10.0,
    stream: bool = False,
    max_tokens: int = 16,
    common: Local = LOCAL,
) -> int:
    """Ask the same small question over and over, so many at once, and say what came of it.

    Parameters
    ----------
    url:
        The gateway, without /v1.
    key:
        A virtual key; what it asks is paid for.
    model:
        What to ask for.
    concurrency:
        Requests at once; each connection sends the next when its answer is whole.
    seconds:
        How long.
    stream:
        Ask for streams, and time the first token.
    max_tokens:
        Longest answer.
    """
    import uvloop

    from gateway.cli.load import measure

    outcome = uvloop.run(
        measure(url.rstrip("/"), key, model, concurrency, seconds, stream, max_tokens, quiet=common.json)
    )
    if outcome.unreached and not outcome.answers:
        fix = "start it (`farebox up`), or say where it is with --url"
        raise Problem(f"nobody answers at {url}: {outcome.last_error}", fix=fix, code=AWAY)
    emit(common, outcome.as_dict(), lambda: _table(outcome))
    return OK if outcome.errors == 0 and outcome.answers else NOT_WELL


@app.command
def serve(*, port: int, upstream: str, common: Local = LOCAL) -> int:
    """Run one gateway worker with everything on: keys, limits, routing, exactly-once metering.

    Every model name goes upstream unchanged, at a price. Takes DATABASE_URL, REDIS_URL and FAREBOX_BOOTSTRAP_KEY;
    without them SQLite and an embedded Valkey in a throw-away folder, and a key of its own, printed as the last line.

    Parameters
    ----------
    port:
        TCP port on loopback.
    upstream:
        Base URL of an OpenAI-like server, /v1 included.
    """
    import uvloop

    from gateway.cli.listening import bind
    from gateway.cli.ride import Ride
    from gateway.config import load
    from gateway.embedded.instance import Instance
    from gateway.memory import share_one_arena
    from gateway.observe import logs

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fbx-bench-") as folder:
        flags = {"server.port": port, "local.enabled": False, "data_dir": Path(folder), "log.level": "warning"}
        settings = _open_to(upstream, load(common.config, flags=flags))
        logs.configure(settings.log)
        share_one_arena()
        with Instance(settings.data_dir) as instance, bind(settings) as bound:
            uvloop.run(limited(Ride)(settings, instance, bound, common, started).run())
    return OK


def limited(ride: type[Ride]) -> type[Ride]:
    """The first key with a limit of each kind, too high to be met: their checks belong to what is measured."""

    class Limited(ride):  # type: ignore[misc, valid-type]
        async def _first_things(self, pepper: bytes) -> First:
            from sqlalchemy import select

            from billing.accounts import Scope, Window
            from billing.db import create_engine, reading
            from gateway.admission.key_admin import KeyAdmin, KeyChanges
            from gateway.admission.minting import hash_of
            from gateway.schema import virtual_keys

            first: First = await super()._first_things(pepper)
            engine, now_ns = create_engine(self._settings.database_url), time.time_ns()
            try:
                async with reading(engine) as db:
                    ours = virtual_keys.c.secret_hash == hash_of(first.key or "", pepper)
                    key_id = (await db.execute(select(virtual_keys.c.id).where(ours))).scalar_one()
                keys = KeyAdmin(engine, None, pepper)
                high = KeyChanges(rpm=10**9, tpm=10**10, parallel=10**6)
                await keys.update_key(key_id, high, actor="bench", now_ns=now_ns)
                await keys.set_budget(Scope.KEY, key_id, Window.TOTAL, 10**18, actor="bench", now_ns=now_ns)
            finally:
                await engine.dispose()
            return first

    return Limited


def _open_to(upstream: str, settings: Settings) -> Settings:
    """Whatever is asked for, that upstream answers it."""
    from msgspec.structs import replace

    from gateway.config import DeploymentSettings, ModelSettings, PriceSettings, ProviderSettings

    price = PriceSettings(input=Decimal("0.15"), output=Decimal("0.60"))
    return replace(
        settings,
        providers={"upstream": ProviderSettings(kind="openai_like", base_url=upstream)},
        models=(
            ModelSettings(alias="*", deployments=(DeploymentSettings(provider="upstream", model="*", price=price),)),
        ),
    )


def _table(outcome: Outcome) -> object:
    return make_table(("figure", "value"), list(outcome.as_dict().items()), right=("value",))
