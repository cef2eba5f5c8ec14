"""`farebox worker`: usage journals into the database, and chores, without serving: for a container of its own, or to
catch up."""

from __future__ import annotations

import asyncio
import secrets
import time

from cyclopts import App

from gateway.cli.common import LOCAL, OK, Local, database, emit

app = App(name="worker")


@app.default
def worker(*, once: bool = False, common: Local = LOCAL) -> int:
    """Ship the usage journals of this data folder into the database until SIGTERM, and do the chores: seal days, expire
    grants, alerts, exports, retention. Gateways do so themselves as well.

    Parameters
    ----------
    once:
        Ship what there is, do the chores that are due, and end.
    """
    import uvloop

    shipped = uvloop.run(_run(once, common))
    if once:
        emit(common, {"shipped": shipped}, lambda: f"{shipped} usage records shipped")
    return OK


async def _run(once: bool, common: Local) -> int:
    from billing.chores import Chores
    from billing.db import reading
    from billing.pricelist import load_prices
    from billing.usage import OrphanPolicy
    from billing.worker import Worker
    from gateway.chores import chores_of
    from gateway.cli.listening import on_signal
    from gateway.memory import share_one_arena
    from gateway.observe import logs

    settings = common.settings()
    logs.configure(settings.log)
    share_one_arena()
    async with database(settings) as engine, chores_of(settings, engine) as listed:
        async with reading(engine) as db:
            prices = await load_prices(db)
        shipper = Worker(
            settings.data_dir / "journal",
            engine,
            prices,
            orphans=OrphanPolicy(settings.admission.orphans),
            exports=tuple(settings.exports),
        )
        chores = Chores(engine, listed, f"worker-{secrets.token_hex(8)}", time.time_ns)
        if once:
            shipped = await shipper.ship_once()
            await chores.once()
            return shipped
        stop = asyncio.Event()
        with on_signal(stop.set):
            async with asyncio.TaskGroup() as group:
                group.create_task(shipper.run(stop))
                group.create_task(chores.run(stop))
        return shipper.shipped
