"""`farebox migrate`: the newest schema and the shipped prices."""

from __future__ import annotations

from cyclopts import App

from gateway.cli.common import AWAY, LOCAL, OK, Local, Problem, emit
from gateway.config import hide_password

app = App(name="migrate")


@app.default
async def migrate(*, common: Local = LOCAL) -> int:
    """Bring the database to the newest schema and the shipped prices. Safe to run again, and by several at once."""
    from billing.migrate import upgrade
    from gateway.embedded.prices import declare_prices

    settings = common.settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    shown = hide_password(settings.database_url)
    try:
        await upgrade(settings.database_url)
    except OSError as error:
        raise Problem(f"{shown} is away: {error}", fix="check DATABASE_URL and the server", code=AWAY) from error
    await declare_prices(settings)
    emit(common, {"database": shown, "current": True}, lambda: f"{shown} is current")
    return OK
