"""What the commands share: options, settings, the database, output for people and for programs, error reports."""

from __future__ import annotations

import datetime
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from gateway.config import ConfigError, Settings, load

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

OK, NOT_WELL, WRONG_USAGE, AWAY = 0, 1, 2, 3


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options that every command takes."""

    config: Annotated[Path | None, Parameter(help="Settings file; default: farebox.toml, .yaml or .yml here.")] = None
    data: Annotated[Path | None, Parameter(help="Data folder; default: .farebox here.")] = None
    json: Annotated[bool, Parameter(help="Print one JSON value for programs.", negative="")] = False

    def settings(self, **flags: object) -> Settings:
        """flags: dotted names with `__` for the dot. Raises: ConfigError."""
        said = {name.replace("__", "."): value for name, value in flags.items()}
        return load(self.config, flags={"data_dir": self.data, **said})


DEFAULTS = Common()


class Problem(Exception):
    """Something the user can mend. Printed as one line and a fix, without a traceback."""

    def __init__(self, message: str, *, fix: str = "", code: int = NOT_WELL) -> None:
        super().__init__(message)
        self.fix = fix
        self.code = code


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """The database of an installation that exists. Raises: Problem if there is none, or of another version."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    from billing.db import create_engine
    from billing.migrate import is_current

    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        # Opening would make an empty one, in whatever folder this happens to be.
        raise Problem(
            f"no Farebox in {settings.data_dir}",
            fix="run `farebox up` first, or name its folder with --data",
            code=AWAY,
        )
    engine = create_engine(settings.database_url)
    try:
        if not await is_current(settings.database_url):
            raise Problem("the database has another schema than this version", fix="run `farebox migrate`", code=AWAY)
        yield engine
    except (OSError, DBAPIError) as error:
        if isinstance(error, DBAPIError) and not (error.connection_invalidated or "connect" in str(error.orig)):
            raise
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise Problem(f"the database is away: {cause}", fix="check DATABASE_URL and the server", code=AWAY) from error
    finally:
        await engine.dispose()


def emit(common: Common, value: Any, table: Callable[[], Any]) -> None:
    """Print `value` as JSON where programs read, else what `table` makes (text or something rich can print)."""
    if common.json:
        print(encode(value))
        return
    from rich.console import Console

    Console(soft_wrap=True).print(table(), highlight=False)


def encode(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Any:
    """A plain table; columns named in `right` are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=True)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


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


def report(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong on standard error. Returns: the exit code. Raises: the error, if it is a bug of ours."""
    code, fix = _classify(error)
    if code is None:
        raise error
    if as_json:
        problem = {"kind": type(error).__name__, "message": str(error), "fix": fix or None}
        print(encode({"error": problem}), file=sys.stderr)
    else:
        print(f"farebox: {error}" + (f"\n  fix: {fix}" if fix else ""), file=sys.stderr)
    return code


def _classify(error: Exception) -> tuple[int | None, str]:
    if isinstance(error, Problem):
        return error.code, error.fix
    if isinstance(error, ConfigError):
        return WRONG_USAGE, ""
    from billing.errors import BillingError
    from gateway.embedded.instance import AlreadyRunning
    from gateway.embedded.process import StartFailed
    from gateway.errors import GatewayError, Unavailable

    if isinstance(error, StartFailed | Unavailable):
        return AWAY, ""
    if isinstance(error, AlreadyRunning | BillingError | GatewayError):
        return NOT_WELL, ""
    return None, ""
