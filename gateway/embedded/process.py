"""Child processes that end with us, however we end, and that are started again when they end by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG = 1
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A child that lived this long is not in a crash loop: its next restart is immediate again."""
LOG_KEEP_BYTES = 10 * 2**20

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


LEASH = Path(__file__).with_name("leash.py")
_leashes: dict[int, Process] = {}
"""By pid of the child. Kept until we end: a helper whose pipe is collected would end its child."""


class StartFailed(Exception):
    """A child did not come up. The message says which, why, and where its log is."""


def tie_to_parent(parent: int) -> Callable[[], None] | None:
    """For `preexec_fn`: the kernel sends the child SIGTERM when the thread that forked it dies, kill -9 included.

    Source: prctl(2), PR_SET_PDEATHSIG, read 2026-11. None where the kernel has no such thing; see `hold_leash`.
    """
    if _LIBC is None:
        return None
    libc = _LIBC

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # It died between fork and prctl: nobody would ever send the signal.
            os._exit(1)

    return tie


async def hold_leash(pid: int) -> Process:
    """Where the kernel does not tell children of our death (macOS), a helper does: its input ends when we do.

    Returns: the helper, which must be kept for as long as the child is wanted."""
    return await asyncio.create_subprocess_exec(sys.executable, str(LEASH), str(pid), stdin=PIPE, stdout=DEVNULL)


async def spawn(
    argv: Sequence[str], *, log_path: Path | None, environ: Mapping[str, str] | None, pass_fds: Sequence[int] = ()
) -> Process:
    """Start a child that dies with us. Call from the main thread alone.

    log_path: what its output is appended to; None: it shares ours. environ: None is ours, secrets and all."""
    with contextlib.ExitStack() as files:
        out = None
        if log_path is not None:
            rotate(log_path)
            out = files.enter_context(log_path.open("ab"))
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=out,
            stderr=out,
            env=None if environ is None else dict(environ),
            pass_fds=tuple(pass_fds),
            # A Ctrl-C reaches the whole foreground group; the order of the stop is ours to choose.
            start_new_session=True,
            preexec_fn=tie_to_parent(os.getpid()),
        )
    if _LIBC is None:
        _leashes[process.pid] = await hold_leash(process.pid)
    return process


def rotate(log_path: Path) -> None:
    """Keep one old log of bounded size."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists() and log_path.stat().st_size > LOG_KEEP_BYTES:
        log_path.replace(log_path.with_suffix(".old.log"))


def tail(log_path: Path, lines: int = 8) -> str:
    """The last lines of a child's log, for the message about its failure."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, log_path.stat().st_size - 8192))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")
    except OSError:
        return ""


class Supervisor:
    """Keeps one child running. `start` waits until it answers; later deaths are mended in the background.

    start_child: makes a new process. ready: returns when the child answers, raises StartFailed when it will not.
    """

    def __init__(
        self,
        name: str,
        start_child: Callable[[], Awaitable[Process]],
        ready: Callable[[Process], Awaitable[None]],
        *,
        log_path: Path | None = None,
        backoff_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._start_child = start_child
        self._ready = ready
        self._log_path = log_path
        self._backoff_first_s = backoff_s
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._healthy = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def healthy(self) -> asyncio.Event:
        """Set while the child answers. Tests and health checks wait for it."""
        return self._healthy

    async def start(self) -> None:
        """Raises: StartFailed; then nothing is left running."""
        try:
            await self._launch()
        except BaseException:
            await self._end(0.5)
            raise
        self._watch = asyncio.create_task(self._keep(), name=f"supervise {self.name}")

    async def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. Idempotent."""
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await self._end(grace_s)

    async def _launch(self) -> None:
        self._process = await self._start_child()
        await self._ready(self._process)
        self._healthy.set()

    async def _keep(self) -> None:
        backoff_s = self._backoff_first_s
        while self._process is not None:
            since = time.monotonic()
            code = await self._process.wait()
            self._healthy.clear()
            if time.monotonic() - since > HEALTHY_AFTER_S:
                backoff_s = self._backoff_first_s
            log.error("child ended; starting it again", child=self.name, code=code, backoff_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            self.restarts += 1
            try:
                await self._launch()
            except (StartFailed, OSError) as error:
                log.error("child did not come up", child=self.name, error=str(error), log=str(self._log_path))
                await self._end(0.5, keep=True)

    async def _end(self, grace_s: float, *, keep: bool = False) -> None:
        process = self._process
        if process is None:
            return
        self._healthy.clear()
        if process.returncode is None:
            try:
                process.terminate()
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                log.warning("child did not stop in time; killed", child=self.name, grace_s=grace_s)
                process.kill()
                await process.wait()
            except ProcessLookupError:
                await process.wait()
        if not keep:
            self._process = None
