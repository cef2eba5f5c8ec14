"""`farebox engine serve`: the local engine by itself, for a machine of its own."""

from __future__ import annotations

import os
import sys

from cyclopts import App

from gateway.cli.common import AWAY, LOCAL, Local, Problem
from gateway.config import own_environment

app = App(name="engine")


@app.command
def serve(
    model: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    common: Local = LOCAL,
) -> int:
    """Serve one model over HTTP in OpenAI's dialect. FAREBOX_ENGINE_KEY, if set, is the bearer token to show.

    Parameters
    ----------
    model:
        A catalogue name, a folder, or a GGUF file; default: local.model of the settings.
    host:
        Address to listen on.
    port:
        TCP port.
    """
    from gateway.embedded.engine import can_run

    if not can_run():
        raise Problem("the engine needs torch", fix="pip install 'farebox[local]'", code=AWAY)
    settings = common.settings()
    argv = [sys.executable, "-m", "local_backend", model or settings.local.model]
    argv += ["--data", str(settings.data_dir), "--host", host, "--port", str(port)]
    # Becomes the engine: one process, whose signals and exit code are its own.
    environ = own_environment({"FAREBOX_ENGINE_KEY": settings.engine_key.reveal()} if settings.engine_key else {})
    os.execve(sys.executable, argv, environ)  # noqa: S606
