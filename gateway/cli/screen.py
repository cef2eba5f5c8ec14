"""The live view of `farebox top`: a full screen that is drawn anew, keys without Enter."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.common import OK, WRONG_USAGE, Common, Elsewhere, Problem, database
from gateway.cli.top import app, as_table, decode, look, sorted_rows

if TYPE_CHECKING:
    from rich.console import RenderableType

Look = Callable[[str, str], Awaitable[dict[str, Any]]]

BY: Final = {"m": "model", "k": "key", "p": "provider", "a": "alias"}
SORT: Final = {"r": "requests", "t": "tokens", "s": "spend", "e": "errors", "w": "wait"}
HELP: Final = "m k p a: by model, key, provider, alias   r t s e w: sort   space: hold   q: leave"


async def show(common: Common, by: str, sort: str, window: float, every: float) -> int:
    """Until `q` or Ctrl-C. Raises: Problem where there is no terminal; what the first look raises."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Problem("a live view needs a terminal", fix="farebox top --once --json", code=WRONG_USAGE)
    async with contextlib.AsyncExitStack() as stack:
        return await Screen(await _looks(common, window, stack), by, sort, every).run()


async def _looks(common: Common, window: float, stack: contextlib.AsyncExitStack) -> Look:
    from gateway.config import remote_installation

    url, token = remote_installation()
    url = common.url or url
    if url is None:
        settings = common.settings()
        engine = await stack.enter_async_context(database(settings))
        return lambda by, sort: look(engine, settings, by, sort, window, time.time_ns())
    from gateway.cli.hosted import call_of
    from gateway.cli.remote import send

    def ask(by: str, sort: str) -> dict[str, Any]:
        argv = ["--by", by, "--sort", sort, "--window", f"{window:g}", "--once", "--json"]
        function, bound, _ = app.parse_args(argv)
        page = io.StringIO()
        send(["top", *argv], call_of(function, bound, ["top"]), url, token, page.write)
        return decode(page.getvalue())

    return lambda by, sort: asyncio.to_thread(ask, by, sort)


class Screen:
    """What is shown and what the keys have made of it."""

    def __init__(self, looks: Look, by: str, sort: str, every: float) -> None:
        self._looks = looks
        self._by, self._sort = by, sort
        self._every = every
        self._held = self._left = False
        self._pressed = asyncio.Event()
        self._value: dict[str, Any] = {}
        self._problem = ""

    async def run(self) -> int:
        from rich.console import Console
        from rich.live import Live

        await self._look(first=True)
        with (
            _keys(self._press),
            Live(self._page(), console=Console(), screen=True, auto_refresh=False) as live,
        ):
            while not self._left:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._pressed.wait(), self._every)
                self._pressed.clear()
                if not self._held and not self._left:
                    await self._look()
                live.update(self._page(), refresh=True)
        return OK

    async def _look(self, *, first: bool = False) -> None:
        """A gateway that is away for a moment does not end the view; what is shown is the last that was heard."""
        try:
            self._value = await self._looks(self._by, self._sort)
            self._problem = ""
        except (Problem, Elsewhere) as error:
            if first:
                raise
            self._problem = str(error)

    def _press(self, key: str) -> None:
        self._by = BY.get(key, self._by)
        if key in SORT:
            self._sort = SORT[key]
            self._value["rows"] = sorted_rows(self._value["rows"], self._sort)
        self._held ^= key == " "
        self._left |= key in ("q", "\x03")
        self._pressed.set()

    def _page(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        at = time.strftime("%H:%M:%S", time.gmtime(self._value["at_ns"] // 10**9))
        state = " HELD" if self._held else ""
        title = Text(f"farebox top  {at} UTC  by {self._value['by']}, most {self._sort} first{state}", style="bold")
        said = [Text(self._problem, style="red")] if self._problem else []
        return Group(title, *said, as_table(self._value), "", Text(HELP, style="dim"))


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Generator[None, None, None]:
    """Each key as it is pressed, without Enter and unseen. The terminal is as before afterwards."""
    import os
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # From the descriptor: what Python's own buffer took would wake nobody.
        for key in os.read(number, 64).decode(errors="ignore") or "q":
            press(key)

    tty.setcbreak(number)
    loop.add_reader(number, read)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)
