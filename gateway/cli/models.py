"""`farebox models`: what can be asked for, and the local engine's weights.

The engine's package is another process's: its catalogue is asked by command line, never imported.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
from cyclopts import App

from gateway.cli.common import AWAY, DEFAULTS, NOT_WELL, OK, Common, Problem, emit, make_table
from gateway.config import Settings, child_environment

app = App(name="models")


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the models that requests may name, and the local ones that are fetched or can be."""
    settings = common.settings()
    fetched = (await _catalogue(settings, "list"))["models"]
    available = (await _catalogue(settings, "available"))["models"]
    here = {model["name"] for model in fetched}
    rows = [
        {"model": entry.alias, "where": ", ".join(f"{d.provider}/{d.model}" for d in entry.deployments)}
        for entry in settings.models
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
