"""What the commands share: options, settings, the database, output for people and for programs, error reports.

`Local` are the options of a command that only makes sense on this machine, `Common` those of one that also works on a
remote installation, `Changes` of one that moves money or keys.
"""

from __future__ import annotations

import datetime
import io
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from gateway.cli.site import HERE, CallerLeft
from gateway.config import ConfigError, Settings, load

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions
    from rich.measure import Measurement
    from rich.text import Text

    from billing.db import AsyncConnection, AsyncEngine
    from gateway.cli.hosted import Commands

PIPE_WIDTH = 1000
OK, NOT_WELL, WRONG_USAGE, AWAY = 0, 1, 2, 3
_SHOWN = 5


@Parameter(name="*")
@dataclass(frozen=True)
class Local:
    """Options that every command takes."""

    config: Annotated[Path | None, Parameter(help="Settings file; default: farebox.toml, .yaml or .yml here.")] = None
    data: Annotated[Path | None, Parameter(help="Data folder; default: .farebox here.")] = None
    json: Annotated[bool, Parameter(help="Print one JSON value for programs.", negative="")] = False

    def settings(self, **flags: object) -> Settings:
        """flags: dotted names with `__` for the dot. Raises: ConfigError; Problem for folders of another machine."""
        if (site := HERE.get()) is not None:
            if self.config or self.data:
                fix = "leave --config and --data out, or unset FAREBOX_URL to work on this machine"
                raise Problem("the settings are the gateway's own", fix=fix, code=WRONG_USAGE)
            return site.settings
        said = {name.replace("__", "."): value for name, value in flags.items()}
        return load(self.config, flags={"data_dir": self.data, **said})


@Parameter(name="*")
@dataclass(frozen=True)
class Common(Local):
    """Options of commands that work on this machine or, with a token, on a remote installation."""

    url: Annotated[
        str | None, Parameter(help="Work on the gateway there, with the API token in FAREBOX_TOKEN. Or FAREBOX_URL.")
    ] = None
    watch: Annotated[
        float | None, Parameter(help="Do it again every so many seconds, until Ctrl-C. Only for what changes nothing.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class Changes(Common):
    """Options of commands that change money, keys or prices."""

    dry_run: Annotated[
        bool, Parameter(help="Do all of it in one transaction, show what comes out, and take it back.", negative="")
    ] = False


LOCAL, DEFAULTS, CHANGES = Local(), Common(), Changes()


class Problem(Exception):
    """Something the user can mend. Printed as one line and a fix, without a traceback."""

    def __init__(self, message: str, *, fix: str = "", code: int = NOT_WELL) -> None:
        super().__init__(message)
        self.fix = fix
        self.code = code


@asynccontextmanager
async def database(settings: Settings, *, dry: bool = False) -> AsyncIterator[AsyncEngine]:
    """The database of an installation that exists. dry: what is written into it is taken back at the end.

    Raises: Problem if there is none, or of another version."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    from billing.db import create_engine, rehearsing
    from billing.migrate import is_current

    site = HERE.get()
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        # Opening would make an empty one, in whatever folder this happens to be.
        raise Problem(
            f"no Farebox in {settings.data_dir}",
            fix="run `farebox up` first, or name its folder with --data",
            code=AWAY,
        )
    async with AsyncExitStack() as stack:
        try:
            if site is None and not await is_current(settings.database_url):
                raise Problem(
                    "the database has another schema than this version", fix="run `farebox migrate`", code=AWAY
                )
            if dry:
                engine = await stack.enter_async_context(rehearsing(settings.database_url))
            elif site is not None:
                engine = site.engine
            else:
                engine = create_engine(settings.database_url)
                stack.push_async_callback(engine.dispose)
            yield engine
        except (OSError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and not (error.connection_invalidated or "connect" in str(error.orig)):
                raise
            cause = error.orig if isinstance(error, DBAPIError) else error
            fix = "check DATABASE_URL and the server"
            raise Problem(f"the database is away: {cause}", fix=fix, code=AWAY) from error


async def organisation_of(db: AsyncConnection, said: str | None) -> str:
    """Its id, by id or name; None: the only one. A mistyped one would get an account of its own.

    Raises: Problem with those there are."""
    from billing.accounts import organisations

    known = await organisations(db)
    found = [each.id for each in known if said in (None, each.id)] or [each.id for each in known if said == each.name]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{each.id} ({each.name})" for each in known[:_SHOWN]) or "none; `farebox ledger open` makes one"
    more = "" if len(known) <= _SHOWN else ", and others; `farebox ledger organisations` shows all"
    problem = f"no organisation {said!r}"
    if found or said is None:
        problem = f"{len(found)} organisations" + (f" are called {said!r}" if said else ", and none is named")
    raise Problem(problem, fix=f"take the id of one: {there}{more}")


def emit(common: Local, value: Any, table: Callable[[], Any]) -> None:
    """Print `value` as JSON where programs read, else what `table` makes (text or something rich can print)."""
    from rich.console import Console

    dry = isinstance(common, Changes) and common.dry_run
    if common.json:
        text = encode(value | {"dry_run": True} if dry else value) + "\n"
        if (site := HERE.get()) is not None:
            site.tell({"out": text})
        else:
            sys.stdout.write(text)
        return
    shown = [table(), *(["dry run: nothing of this was kept"] if dry else [])]
    if (site := HERE.get()) is None:
        # Names in [brackets] are names, not markup.
        Console(soft_wrap=True, width=terminal_width(), markup=False).print(*shown, sep="\n", highlight=False)
        return
    page = io.StringIO()
    console = Console(
        file=page, soft_wrap=True, width=site.width, force_terminal=site.color,
        color_system="256" if site.color else None, markup=False,
    )  # fmt: skip
    console.print(*shown, sep="\n", highlight=False)
    site.tell({"out": page.getvalue()})


def terminal_width() -> int | None:
    """None: as wide as the terminal is. What reads a pipe wants each row on one line."""
    return None if sys.stdout.isatty() else PIPE_WIDTH


@contextmanager
def progress(common: Local, what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """A bar on standard error, where a person looks on. Yields: what takes the number of things done since it was
    called before."""
    site = HERE.get()
    if site is not None:
        done = told = 0

        def advance(count: int) -> None:
            nonlocal done, told
            if site.left:
                raise CallerLeft
            done += count
            if done == total or (done - told) * 100 >= total:  # a percent at a time
                told = done
                site.tell({"progress": {"what": what, "done": done, "total": total}})

        yield advance
        return
    with bar(common) as show:
        seen = 0

        def move(count: int) -> None:
            nonlocal seen
            seen += count
            show(what, seen, total)

        yield move


@contextmanager
def bar(common: Local) -> Generator[Callable[[str, int, int], None], None, None]:
    """Yields: what takes a bar's name, how much is done, and of how much. One bar for each name."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    with Progress(console=console, transient=True, disable=common.json or not console.is_terminal) as shown:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=done, total=total)

        yield show


def encode(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Any:
    """A plain table; columns named in `right` are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=True)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(value: object) -> Any:
    return value if isinstance(value, Elided) else "" if value is None else str(value)


class Elided:
    """A name in one line of a table that has no room for all of it: its middle goes. Its ends tell names apart, whose
    they are and which version."""

    LEAST: Final = 12

    def __init__(self, text: str) -> None:
        self.text = text

    def within(self, cells: int) -> str:
        from rich.cells import cell_len, set_cell_size

        if cell_len(self.text) <= cells:
            return self.text
        # Where a character of two cells has room for one, Rich fills up with a space.
        head = set_cell_size(self.text, (cells - 1) // 2).rstrip()
        tail = set_cell_size(self.text[::-1], cells // 2)[::-1].lstrip()
        return f"{head}…{tail}"

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        yield Text(self.within(options.max_width))

    def __rich_measure__(self, console: RichConsole, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        wanted = cell_len(self.text)
        return Measurement(min(wanted, self.LEAST), wanted)


def day_ns(text: str) -> int:
    """When a day like 2026-11-01 begins in UTC. Raises: ValueError."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no day like 2026-11-01") from error
    return (day - datetime.date(1970, 1, 1)).days * 86_400 * 10**9


def usd(pusd: int | None) -> str | None:
    """Exact, for people and programs alike: "0.0000123 USD" is never 0.00 nor a float."""
    from billing.money import format_usd

    return None if pusd is None else format_usd(pusd)


def commands_of(settings: Settings) -> Commands:
    """What runs command lines that are sent to a gateway; loaded with its front office."""
    from gateway.cli.hosted import Commands

    return Commands(settings)


def report(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong on standard error. Returns: the exit code. Raises: the error, if it is a bug of ours."""
    failure = failure_of(error)
    if failure is None:
        raise error
    if as_json:
        problem = {"kind": failure.kind, "message": failure.message, "fix": failure.fix or None}
        print(encode({"error": problem}), file=sys.stderr)
    else:
        print(f"farebox: {failure.message}" + (f"\n  fix: {failure.fix}" if failure.fix else ""), file=sys.stderr)
    return failure.code


class Failure(msgspec.Struct, frozen=True):
    """How a command failed, in words that go over the wire as well. code: the exit code."""

    kind: str
    message: str
    fix: str
    code: int


class Elsewhere(Exception):
    """A command failed where it was sent to."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failure_of(error: Exception) -> Failure | None:
    """None: a bug of ours."""
    if isinstance(error, Elsewhere):
        return error.failure
    code, fix = _classify(error)
    return None if code is None else Failure(type(error).__name__, _said(error), fix, code)


def _said(error: Exception) -> str:
    from sqlalchemy.exc import IntegrityError

    from billing.errors import InsufficientFunds

    if isinstance(error, InsufficientFunds):  # Its own words are in pUSD.
        return f"{error.account}: {usd(error.wanted_pusd)} USD wanted, {usd(error.available_pusd)} USD available"
    if isinstance(error, IntegrityError):  # Its own words are SQL.
        return "somebody else changed the same thing at this moment"
    return str(error)


def _classify(error: Exception) -> tuple[int | None, str]:
    if isinstance(error, Problem):
        return error.code, error.fix
    if isinstance(error, ConfigError):
        return WRONG_USAGE, ""
    from sqlalchemy.exc import IntegrityError

    from billing.errors import BillingError
    from gateway.embedded.instance import AlreadyRunning
    from gateway.embedded.process import StartFailed
    from gateway.errors import GatewayError, Unavailable

    if isinstance(error, StartFailed | Unavailable):
        return AWAY, ""
    if isinstance(error, IntegrityError):
        return NOT_WELL, "look at what is there, then decide"
    if isinstance(error, AlreadyRunning | BillingError | GatewayError):
        return NOT_WELL, ""
    return None, ""
