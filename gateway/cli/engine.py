"""`farebox engine serve` and `convert`: the local engine by itself, and models for it from a trainer's checkpoints."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
    kv_events: str | None = None,
    kv_events_replay: str | None = None,
    register: str | None = None,
    register_as: str | None = None,
    replica: str | None = None,
    advertise: str | None = None,
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
    kv_events:
        ZeroMQ address at which changes of the prefix cache are published.
    kv_events_replay:
        ZeroMQ address at which missed changes are asked for.
    register:
        Gateways to join as a replica, with commas between several. FAREBOX_ENGINE_REGISTER_TOKEN is the token to show.
    register_as:
        The gateways' provider that takes replicas.
    replica:
        Name of this replica, the same after a restart; default: host and port.
    advertise:
        Where gateways reach this engine; default: http://HOST:PORT/v1.
    """
    _ask_for_torch()
    settings = common.settings()
    argv = [sys.executable, "-m", "local_backend", model or settings.local.model]
    argv += ["--data", str(settings.data_dir), "--host", host, "--port", str(port)]
    flags = {
        "--kv-events": kv_events, "--kv-events-replay": kv_events_replay, "--register": register,
        "--register-as": register_as, "--replica": replica, "--advertise": advertise,
    }  # fmt: skip
    argv += [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    # Becomes the engine: one process, whose signals and exit code are its own.
    environ = own_environment({"FAREBOX_ENGINE_KEY": settings.engine_key.reveal()} if settings.engine_key else {})
    os.execve(sys.executable, argv, environ)  # noqa: S606


@app.command
def convert(checkpoint: Path, target: Path, /, *, base: Path) -> int:
    """Make a folder that the engine serves from a checkpoint of FSDP (DCP) or DeepSpeed (ZeRO).

    Parameters
    ----------
    checkpoint:
        Folder of one step: with .metadata, or with *_optim_states.pt. Convert what you have trained yourself.
    target:
        Folder to write.
    base:
        Folder of the model that was trained, for its config.json and tokenizer.
    """
    _ask_for_torch()
    argv = [sys.executable, "-m", "local_backend.training", str(checkpoint), str(target), "--base", str(base)]
    os.execve(sys.executable, argv, own_environment({}))  # noqa: S606


def _ask_for_torch() -> None:
    from gateway.embedded.engine import can_run

    if not can_run():
        raise Problem("the engine needs torch", fix="pip install 'farebox[local]'", code=AWAY)
