"""The front's side of the seam: starts the core process, keeps it alive, and hands its output to whoever waits.

A core that dies or stops making progress is started again; what ran in it fails with an error that says so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from local_backend.config import Settings, core_environment
from local_backend.errors import (
    BadLogits,
    ConstraintFailed,
    CoreDied,
    DeadlineExceeded,
    EngineError,
    ModelUnavailable,
    NotReady,
    QueueFull,
)
from local_backend.messages import (
    FRAME_HEAD,
    Abort,
    AddImages,
    AddRequest,
    Configure,
    Fatal,
    FromCore,
    Images,
    Ready,
    Sampling,
    Stats,
    StepOutput,
    Terms,
    ToCore,
    TokenOut,
    Vector,
    decode_from_core,
    frame,
)

if TYPE_CHECKING:
    from local_backend.kv_events import Publisher

log = logging.getLogger("local_backend")

FAILURES: dict[str, type[EngineError]] = {
    kind.code: kind for kind in (QueueFull, BadLogits, ConstraintFailed, DeadlineExceeded)
}
FIRST_RESTART_DELAY_S, LAST_RESTART_DELAY_S = 0.2, 10.0


class Flight:
    """The sequences of one request while they are in the core, as their one reader in the front sees them."""

    def __init__(self, ids: list[int], tenant: str) -> None:
        self.ids = ids
        self.tenant = tenant
        self._tokens: dict[int, list[TokenOut]] = {}
        self._vectors: dict[int, bytes] = {}
        self._error: EngineError | None = None
        self._news = asyncio.Event()

    async def next(self) -> dict[int, list[TokenOut]]:
        """All tokens that came since the last call, at least one, by sequence. Raises the error that ended the request.

        One reader may wait at a time. A slow one is sent no more than max_tokens per sequence, so memory is bounded."""
        await self._news.wait()
        self._news.clear()
        if not self._tokens:
            assert self._error is not None
            raise self._error
        if self._error is not None:
            self._news.set()  # first what was generated, then the bad news
        tokens, self._tokens = self._tokens, {}
        return tokens

    async def vectors(self) -> list[bytes]:
        """What an encoder made of the sequences, in their order, when all are done. Raises what ended the request."""
        while len(self._vectors) < len(self.ids):
            if self._error is not None:
                raise self._error
            await self._news.wait()
            self._news.clear()
        return [self._vectors[id_] for id_ in self.ids]

    def put_vector(self, vector: Vector) -> None:
        """One sequence is done."""
        self._vectors[vector.id] = vector.values
        self._news.set()

    def put(self, token: TokenOut) -> None:
        """One more token."""
        self._tokens.setdefault(token.id, []).append(token)
        self._news.set()

    def fail(self, error: EngineError) -> None:
        """End the request."""
        self._error = error
        self._news.set()


class CoreClient:
    """The core process and the sequences in it. `run` is to be awaited by a task group for as long as we serve."""

    def __init__(self, settings: Settings, model_dir: str, publisher: Publisher | None = None) -> None:
        """publisher: who is told of changes in the prefix cache."""
        self.publisher = publisher
        self.settings = settings
        self.model_dir = model_dir
        self.ready: Ready | None = None
        self.fatal: ModelUnavailable | None = None
        self.stats: Stats | None = None
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._flights: dict[int, Flight] = {}
        self._tenants: Counter[str] = Counter()  # open sequences of each
        self._ids = itertools.count(1)
        self._became_ready = asyncio.Event()
        self._last_progress = 0.0
        self._closed = asyncio.Event()

    @property
    def open_sequences(self) -> int:
        """Sequences that are waiting or running in the core."""
        return len(self._flights)

    @property
    def core_pid(self) -> int | None:
        """Process id of the core, for tests and operators."""
        return self._process.pid if self._process else None

    def submit(
        self, sequences: list[tuple[list[int], Sampling]], cache_salt: str, terms: Terms, images: Images | None = None
    ) -> Flight:
        """Start the sequences of one request, all or none; they share its images. Raises NotReady or QueueFull."""
        if self.ready is None or self._closed.is_set():
            raise NotReady("the engine is loading, restarting or shutting down")
        bound = self.settings.max_running + self.settings.max_waiting
        if len(self._flights) + len(sequences) > bound:
            raise QueueFull(
                f"{len(self._flights)} sequences are running or waiting, of {bound} at most; try again later"
            )
        if not self._flights:
            self._last_progress = time.monotonic()  # the watchdog counts from when there is something to do
        self._check_share(terms.tenant, len(sequences))
        flight = Flight([next(self._ids) for _ in sequences], terms.tenant)
        self._tenants[terms.tenant] += len(sequences)
        shown = 0
        if images is not None:
            shown = flight.ids[0]
            self._send(AddImages(shown, len(sequences), images))
        for id_, (prompt, sampling) in zip(flight.ids, sequences, strict=True):
            self._flights[id_] = flight
            self._send(AddRequest(id_, prompt, sampling, cache_salt, terms, shown))
        return flight

    def _check_share(self, tenant: str, more: int) -> None:
        """One tenant never fills the whole queue: a quarter of it stays for others. Raises QueueFull."""
        bound = self.settings.max_running + self.settings.max_waiting - self.settings.max_waiting // 4
        if self._tenants[tenant] + more > bound:
            raise QueueFull(f"{self._tenants[tenant]} sequences of yours are open, of {bound} at most; try again later")

    def _pop(self, id_: int) -> Flight | None:
        flight = self._flights.pop(id_, None)
        if flight is not None:
            self._tenants[flight.tenant] -= 1
            if not self._tenants[flight.tenant]:
                del self._tenants[flight.tenant]
        return flight

    def release(self, ids: list[int]) -> None:
        """Nobody reads these any more; those that still run stop, and their blocks are free after the current step."""
        for id_ in ids:
            if self._pop(id_) is not None:
                self._send(Abort(id_))

    async def wait_ready(self) -> Ready:
        """Raises ModelUnavailable if the core cannot start at all."""
        await self._became_ready.wait()
        if self.fatal is not None:
            raise self.fatal
        assert self.ready is not None
        return self.ready

    async def run(self) -> None:
        """Start the core, and start it again whenever it ends, until `close`. Returns after a fatal error, too."""
        delay = FIRST_RESTART_DELAY_S
        while not self._is_over():
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "local_backend.engine",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**24,
                env=core_environment(),
            )
            if self._closed.is_set():
                self._hang_up()  # `close` came while this one was being started, and knew of none or of the one before
            try:
                self._send(Configure(self.settings, self.model_dir))
                watchdog = asyncio.create_task(self._watch())
                try:
                    served = await self._read()
                finally:
                    watchdog.cancel()
            finally:
                with suppress(ProcessLookupError):
                    self._process.kill()
                status = await self._process.wait()
            self.ready = self.stats = None  # whoever routes by figures of the dead spares the living
            if self.publisher is not None:
                self.publisher.clear()
            self._fail_all(CoreDied("the engine's core ended while this request ran; it may be sent again"))
            if self._is_over():
                return
            self._became_ready.clear()
            self.restarts += 1
            delay = FIRST_RESTART_DELAY_S if served else min(2 * delay, LAST_RESTART_DELAY_S)
            log.error("core ended with status %s; starting it again in %.1f s", status, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), delay)

    def _is_over(self) -> bool:
        return self._closed.is_set() or self.fatal is not None

    async def close(self) -> None:
        """End the core; requests still in it fail. `run` returns soon after."""
        self._closed.set()
        self._hang_up()

    def _hang_up(self) -> None:
        """A core whose input ends, ends."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _read(self) -> bool:
        """Take frames until the core closes its end. Returns: True if it was ready at some time."""
        assert self._process is not None
        assert self._process.stdout is not None
        source = self._process.stdout
        served = False
        while True:
            try:
                head = await source.readexactly(FRAME_HEAD.size)
                body = await source.readexactly(FRAME_HEAD.unpack(head)[0])
            except asyncio.IncompleteReadError:
                return served
            message: FromCore = decode_from_core(body)
            match message:
                case StepOutput():
                    self._deliver(message)
                case Ready():
                    served = True
                    self.ready = message
                    self._became_ready.set()
                case Fatal():
                    self.fatal = ModelUnavailable(message.message)
                    self._became_ready.set()

    def _deliver(self, output: StepOutput) -> None:
        self._last_progress = time.monotonic()
        self.stats = output.stats
        if self.publisher is not None and output.kv_events:
            self.publisher.publish(output.kv_events)
        for token in output.tokens:
            # Absent: its client has left, and the abort is on its way to the core.
            if (flight := self._flights.get(token.id)) is not None:
                if token.finish is not None:
                    self._pop(token.id)
                flight.put(token)
        for vector in output.vectors:
            if (flight := self._pop(vector.id)) is not None:
                flight.put_vector(vector)
        for failed in output.failed:
            if (flight := self._pop(failed.id)) is not None:
                flight.fail(FAILURES.get(failed.code, EngineError)(failed.message))

    def _fail_all(self, error: EngineError) -> None:
        flights, self._flights = self._flights, {}
        self._tenants.clear()
        for flight in flights.values():
            flight.fail(error)

    def _send(self, message: ToCore) -> None:
        # Not awaited: what may wait here is bounded by max_running + max_waiting, and the core reads in a thread.
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(frame(message))

    async def _watch(self) -> None:
        """Kill a core that has work and finishes no step; `run` then starts a new one."""
        while True:
            await asyncio.sleep(min(1.0, self.settings.watchdog_s / 4))
            stalled = time.monotonic() - self._last_progress
            if self.ready is None or not self._flights or stalled < self.settings.watchdog_s:
                continue
            assert self._process is not None
            log.error("no step finished in %.0f s with %d sequences open; stacks follow", stalled, len(self._flights))
            if hasattr(signal, "SIGUSR1"):
                self._process.send_signal(signal.SIGUSR1)
                await asyncio.sleep(0.5)
            with suppress(ProcessLookupError):
                self._process.kill()
            return
