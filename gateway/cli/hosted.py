"""Commands that were sent here: the server's side of `farebox --url`. What the caller hears are lines of JSON.

One line is one of `out` (text for standard output), `progress` (what, done, total), `file` and `data` (a piece of what
goes to a path that the caller has named), `failed` (a Failure), and at the end `exit`. An empty line is a sign of life.
Who may run what is said in `gateway.admin.auth.roles`, not here.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from cyclopts import CycloptsError
from msgspec import Struct

from gateway.cli.common import OK, Changes, Common, encode, failure_of
from gateway.cli.site import HERE, READ, WRITTEN, CallerLeft, Site

if TYPE_CHECKING:
    from billing.db import AsyncEngine
    from gateway.admission.key_admin import KeyAdmin
    from gateway.config import Settings

log = structlog.get_logger(__name__)

SIGN_OF_LIFE_S: Final = 10.0
PIECE_BYTES: Final = 1 << 20
PARALLEL: Final = 4


class Call(Struct, frozen=True):
    """A command line that was understood. words: as `keys create`. common: None: a command of one machine alone."""

    words: str
    function: Callable[..., Any]
    bound: inspect.BoundArguments
    common: Common | None

    @property
    def travels(self) -> bool:
        """A live view stays at its terminal, and sends for its figures."""
        return self.common is not None and not (self.words == "top" and not self.bound.arguments.get("once"))

    @property
    def changes(self) -> bool:
        return isinstance(self.common, Changes) and not self.common.dry_run

    def said(self) -> dict[str, Any]:
        """Its arguments, for the audit log."""
        return {name: value for name, value in self.bound.arguments.items() if name != "common"}

    def files(self, marker: str) -> list[Path]:
        """What its arguments marked READ or WRITTEN name."""
        hints = inspect.get_annotations(self.function, eval_str=True)
        marked = [name for name, hint in hints.items() if marker in _marks(hint)]
        said = {name: each.default for name, each in self.bound.signature.parameters.items()} | self.bound.arguments
        return [path for name in marked if isinstance(path := said[name], Path)]


def understand(argv: Sequence[str]) -> Call:
    """Raises: ValueError for what is no command, or lacks something."""
    from gateway.cli import build

    app = build()
    try:
        function, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
        names = app.parse_commands(list(argv))[0]
    except CycloptsError as error:
        raise ValueError(str(error)) from error
    return call_of(function, bound, names)


def call_of(function: Callable[..., Any], bound: inspect.BoundArguments, names: Sequence[str]) -> Call:
    common = bound.arguments.get("common")
    if common is None and "common" in bound.signature.parameters:
        common = bound.signature.parameters["common"].default
    return Call(" ".join(names), function, bound, common if isinstance(common, Common) else None)


class Commands:
    """Runs commands with what a gateway has open already, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._room = asyncio.Semaphore(PARALLEL)
        self._running: set[asyncio.Task[tuple[int, Any]]] = set()

    def understand(self, argv: Sequence[str]) -> Call:
        return understand(argv)

    async def run(
        self,
        call: Call,
        engine: AsyncEngine,
        keys: KeyAdmin,
        actor: str,
        files: Mapping[str, bytes],
        width: int,
        color: bool,
    ) -> AsyncIterator[bytes]:
        """Yields lines as they come. A caller who leaves ends the command between two of its transactions."""
        heard: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        await self._room.acquire()
        folder = tempfile.TemporaryDirectory(prefix="fbx-cmd-")
        site = Site(self._settings, engine, keys, actor, files, Path(folder.name), heard.put_nowait, width, color)
        task = asyncio.create_task(_work(call, site), name=f"command {call.words}")
        self._running.add(task)

        def ended(task: asyncio.Task[tuple[int, Any]]) -> None:
            self._running.discard(task)
            self._room.release()
            if site.left:
                folder.cleanup()
            heard.put_nowait(None)

        task.add_done_callback(ended)
        try:
            while True:
                try:
                    line = await asyncio.wait_for(heard.get(), SIGN_OF_LIFE_S)
                except TimeoutError:
                    yield b"\n"
                    continue
                if line is None:
                    break
                yield _line(line)
            code, failed = task.result()
            for piece in _pieces(site.written):
                yield _line(piece)
            if failed is not None:
                yield _line({"failed": failed})
            yield _line({"exit": code})
        finally:
            if task.done():
                folder.cleanup()
            else:
                site.left = True


async def _work(call: Call, site: Site) -> tuple[int, Any]:
    HERE.set(site)
    try:
        result = call.function(*call.bound.args, **call.bound.kwargs)
        if inspect.isawaitable(result):
            result = await result
    except CallerLeft:
        return 1, None
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            log.exception("a command failed", command=call.words)
            failed = {"kind": "Internal", "message": "something went wrong on the gateway's side",
                      "fix": "look for this command in the gateway's log", "code": 1}  # fmt: skip
            return 1, failed
        return failure.code, failure
    return result if isinstance(result, int) else OK, None


def _line(value: dict[str, Any]) -> bytes:
    return encode(value).encode() + b"\n"


def _pieces(written: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    for said, path in written.items():
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        for file in files:
            name = said if file is path else f"{said}/{file.name}"
            with file.open("rb") as opened:
                first = True
                while (data := opened.read(PIECE_BYTES)) or first:
                    yield {"file": name, "first": first, "data": base64.b64encode(data).decode()}
                    first = False


def _marks(hint: Any) -> tuple[Any, ...]:
    """Of `Read`, and of `Read | None`."""
    found = tuple(getattr(hint, "__metadata__", ()))
    for part in getattr(hint, "__args__", ()):
        found += tuple(getattr(part, "__metadata__", ()))
    return tuple(each for each in found if each in (READ, WRITTEN))
