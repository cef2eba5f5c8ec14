"""`farebox check`: the doctor. Looks at everything that Farebox needs and says what to mend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

from cyclopts import App
from msgspec import Struct

from gateway.cli.common import LOCAL, NOT_WELL, OK, Local, emit
from gateway.config import Settings, hide_password, own_environment
from gateway.discovery import discover

app = App(name="check")

State = Literal["ok", "note", "bad"]
PACKAGES = ("gateway", "providers", "billing", "local_backend")
FREE_BYTES_MIN = 512 * 2**20


class Finding(Struct, frozen=True):
    """One thing looked at. A `note` does not fail the check."""

    what: str
    state: State
    says: str
    fix: str = ""


@app.default
async def check(*, online: bool = False, common: Local = LOCAL) -> int:
    """Check everything that Farebox needs. Exit code 1 if something has to be mended.

    Parameters
    ----------
    online:
        Also ask each configured provider for its list of models, which costs nothing but proves the key.
    """
    settings = common.settings()
    findings = [finding async for finding in _look(settings, online)]
    bad = [finding for finding in findings if finding.state == "bad"]

    def text() -> object:
        from rich.text import Text

        signs = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "bold red")}
        lines = Text()
        for finding in findings:
            sign, style = signs[finding.state]
            lines.append(sign, style).append(f"  {finding.what}: {finding.says}\n")
            if finding.fix:
                lines.append(f"      fix: {finding.fix}\n")
        lines.append(f"{len(bad)} to mend" if bad else "all is well")
        return lines

    emit(common, {"ok": not bad, "findings": findings}, text)
    return NOT_WELL if bad else OK


async def _look(settings: Settings, online: bool) -> AsyncIterator[Finding]:
    yield _python()
    yield _packages()
    yield _data_folder(settings)
    yield _secrets(settings)
    yield await _database(settings)
    yield await _redis(settings)
    yield _port(settings)
    yield _local(settings)
    for provider in _providers(settings):
        yield provider
    if online:
        async for finding in _online(settings):
            yield finding


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")


def _packages() -> Finding:
    """Strangers called `providers` and `billing` exist; whoever of them comes first on the path would be imported."""
    roots = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return Finding("packages", "bad", f"{name} is missing", "install Farebox anew")
        roots[name] = Path(spec.origin).parents[1]
    if len(set(roots.values())) > 1:
        said = ", ".join(f"{name} from {root}" for name, root in roots.items())
        return Finding("packages", "bad", f"mixed origins: {said}", "install Farebox in an environment of its own")
    owners = importlib.metadata.packages_distributions()
    others = {owner for name in PACKAGES for owner in owners.get(name, ()) if owner.lower() != "farebox"}
    if others:
        said = f"{', '.join(sorted(others))} brings packages of the same names"
        return Finding("packages", "bad", said, "install Farebox in an environment of its own")
    return Finding("packages", "ok", f"all from {roots['gateway']}")


def _data_folder(settings: Settings) -> Finding:
    folder = settings.data_dir
    if not folder.exists():
        writable = next(parent for parent in folder.parents if parent.exists())
        if not os.access(writable, os.W_OK):
            return Finding(
                "data folder", "bad", f"{folder} cannot be made", f"choose one with --data, or free {writable}"
            )
        return Finding("data folder", "note", f"{folder} will be made by `farebox up`")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("data folder", "bad", f"{folder} is not writable", "chown it to the user that runs Farebox")
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_MIN:
        fix = "free some: without room for the usage journal, requests are refused"
        return Finding("data folder", "bad", f"{free // 2**20} MiB left on the disk of {folder}", fix)
    return Finding("data folder", "ok", f"{folder}, {free // 2**30} GiB free")


def _secrets(settings: Settings) -> Finding:
    folder = settings.data_dir / "secrets"
    missing = [error for error in settings.missing_secrets() if not error.path.startswith("providers.")]
    if missing:
        return Finding("secrets", "bad", str(missing[0]))
    open_to_others = [
        path.name for path in (folder.iterdir() if folder.is_dir() else ()) if path.stat().st_mode & 0o077
    ]
    if open_to_others:
        said = f"others can read {', '.join(open_to_others)}"
        return Finding("secrets", "bad", said, f"chmod 600 {folder}/*")
    mode = stat.filemode(folder.stat().st_mode) if folder.is_dir() else "not made yet"
    return Finding("secrets", "ok", f"{folder} {mode}")


async def _database(settings: Settings) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from billing.migrate import is_current

    shown = hide_password(settings.database_url)
    path = settings.database_url.partition(":///")[2]
    if settings.database_url.startswith("sqlite") and not Path(path).exists():
        return Finding("database", "note", f"{shown} will be made by `farebox up`")
    try:
        current = await is_current(settings.database_url)
    except (OSError, SQLAlchemyError, ValueError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        return Finding("database", "bad", f"{shown}: {cause}", "start the server, or correct DATABASE_URL")
    if not current:
        return Finding("database", "bad", f"{shown} has another schema than this version", "farebox migrate")
    return Finding("database", "ok", f"{shown}, schema current")


async def _redis(settings: Settings) -> Finding:
    import hiredis

    from gateway.admission.changes import VERSION
    from gateway.admission.link import lines_of
    from gateway.admission.store import link_to, store_from
    from gateway.embedded.instance import find_running
    from gateway.embedded.valkey import find_binary, server_version
    from gateway.errors import Unavailable

    url = settings.redis_url
    if url is None and (running := find_running(settings.data_dir)) is not None:
        url = running.redis_url
    if url is None:
        binary = find_binary()
        if binary is None:
            return Finding("redis", "bad", "no server to embed", "install valkey-server, or set REDIS_URL")
        return Finding("redis", "ok", f"{server_version(binary)} will be embedded by `farebox up`")
    try:
        link = link_to(store_from(url))
    except ValueError as error:
        return Finding("redis", "bad", f"{hide_password(url)}: {error}", "correct REDIS_URL")
    try:
        # In a cluster, of whoever has the versions of keys.
        said = lines_of(await link.call("INFO", "server", near=VERSION))
    except (Unavailable, hiredis.ReplyError) as error:
        reason = getattr(error, "message", None) or error
        return Finding("redis", "bad", f"{hide_password(url)}: {reason}", "start the server, or correct REDIS_URL")
    finally:
        await link.aclose()
    name = f"{said.get('server_name', 'redis')} {said.get('valkey_version') or said.get('redis_version')}"
    return Finding("redis", "ok", f"{name} at {hide_password(url)}")


def _port(settings: Settings) -> Finding:
    from gateway.cli.common import Problem
    from gateway.cli.listening import bind
    from gateway.embedded.instance import find_running

    where = f"{settings.server.host}:{settings.server.port}"
    running = find_running(settings.data_dir)
    if running is not None:
        return Finding("port", "ok", f"Farebox is running at {running.base_url} (pid {running.pid})")
    try:
        with bind(settings):
            pass
    except Problem as problem:
        return Finding("port", "bad", str(problem), problem.fix)
    return Finding("port", "ok", f"{where} is free")


def _local(settings: Settings) -> Finding:
    from gateway.embedded.engine import can_run

    local = settings.local
    if not local.enabled:
        return Finding("local model", "note", "off by the settings")
    if local.base_url:
        return Finding("local model", "ok", f"{local.served_name} at {local.base_url}")
    if not can_run():
        return Finding("local model", "note", "off: torch is not installed", "pip install 'farebox[local]'")
    fetched = Path(local.model).exists() or (settings.data_dir / "models" / local.served_name).exists()
    return Finding(
        "local model", "ok", f"{local.served_name}, {'fetched' if fetched else 'fetched at the first start'}"
    )


def _providers(settings: Settings) -> list[Finding]:
    from providers.registry import names

    findings = []
    for name, provider in settings.providers.items():
        errors = [e for e in settings.missing_secrets() if e.path.startswith(f"providers.{name}.")]
        if not provider.enabled:
            findings.append(Finding(name, "note", "off by the settings"))
        elif provider.kind not in names():
            findings.append(
                Finding(name, "bad", f"no adapter is called {provider.kind!r}", f"one of {', '.join(names())}")
            )
        elif errors:
            findings.append(Finding(name, "bad", errors[0].problem.splitlines()[0], errors[0].fix))
        else:
            findings.append(Finding(name, "ok", f"{provider.kind}, credential present"))
    notes = discover(own_environment({}))[1] if settings.discover_providers else []
    findings += [Finding("providers", "note", note) for note in notes]
    if not findings:
        fix = "export OPENAI_API_KEY, ANTHROPIC_API_KEY, GROQ_API_KEY, ... and start again"
        findings.append(Finding("providers", "note", "none yet", fix))
    return findings


async def _online(settings: Settings) -> AsyncIterator[Finding]:
    from gateway.routing.provider_set import ProviderSet, endpoints_from
    from providers.errors import ProviderError
    from providers.transport.base import Timeouts
    from providers.transport.http1 import Http1Transport

    transport = Http1Transport()
    providers = ProviderSet(endpoints_from(settings, None), transport, Timeouts(total_s=20.0, first_byte_s=20.0))
    try:
        for name, provider in settings.providers.items():
            if not provider.enabled:
                continue
            ask: Callable[[], Awaitable[tuple[str, ...]]] = providers.get(name).models
            try:
                yield Finding(f"{name} online", "ok", f"{len(await ask())} models")
            except ProviderError as error:
                said = f"{type(error).__name__}: {error}"
                yield Finding(f"{name} online", "bad", said, "check the key, the address and the network")
    finally:
        await providers.aclose()
        await transport.aclose()
