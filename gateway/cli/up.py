"""`farebox up`: one command from an installed package to an answered and paid question."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from gateway.cli.common import LOCAL, OK, Local
from gateway.config import load

app = App(name="up")


@app.default
def up(
    *,
    port: int | None = None,
    host: str | None = None,
    local: Annotated[bool | None, Parameter(negative="--no-local")] = None,
    common: Local = LOCAL,
) -> int:
    """Start everything on this machine, print how to use it, and run until Ctrl-C or SIGTERM.

    The last line on standard output, when all is ready, is one JSON object: base_url, key, models, dashboard.

    Parameters
    ----------
    port:
        TCP port; default 4000.
    host:
        Address to listen on; loopback unless told.
    local:
        Run the local model. On unless --no-local.
    """
    import time

    started = time.monotonic()
    import uvloop

    from gateway.cli.listening import bind
    from gateway.cli.ride import Ride
    from gateway.embedded.instance import Instance
    from gateway.memory import share_one_arena
    from gateway.observe import logs

    flags = {"server.port": port, "server.host": host, "local.enabled": local, "data_dir": common.data}
    settings = load(common.config, flags=flags)
    logs.configure(settings.log)
    share_one_arena()
    for error in settings.missing_secrets():
        raise error
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with Instance(settings.data_dir) as instance, bind(settings) as bound:
        # By TCP port 0 the system has chosen one.
        settings = load(common.config, flags=flags | {"server.port": bound[0].getsockname()[1]})
        uvloop.run(Ride(settings, instance, bound, common, started).run())
    return OK
