"""`farebox import`: what another gateway had, into this one, with a report of what was not carried."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import App, Parameter

from gateway.cli.common import AWAY, CHANGES, OK, WRONG_USAGE, Changes, Problem, database, emit, make_table, progress
from gateway.cli.keys import key_admin
from gateway.cli.site import Read, Written, acting, place, read_file

if TYPE_CHECKING:
    from gateway.moving.litellm_database import Issued
    from gateway.moving.report import Report

app = App(name="import")

ACTOR = "farebox import"


@app.command
async def litellm(
    config: Read | None = None,
    /,
    *,
    out: Written = Path("farebox.imported.toml"),
    from_database: Annotated[str | None, Parameter(name="--database")] = None,
    keys: Read | None = None,
    history: bool = True,
    common: Changes = CHANGES,
) -> int:
    """Bring LiteLLM's config.yaml and its PostgreSQL over. Doing it again adds only what is new.

    The configuration becomes a settings file of ours, to be looked at and named farebox.toml. Organisations, teams,
    projects, keys, budgets, limits and requests go into our database. LiteLLM's database is only read.

    Parameters
    ----------
    config:
        LiteLLM's config.yaml.
    out:
        Where our settings file is written to.
    from_database:
        LiteLLM's own, as postgres://user:password@host/litellm.
    keys:
        A file with LiteLLM keys, one a line: these go on working as they are. Of the others LiteLLM has only a hash;
        new ones are made, and shown once.
    history:
        Requests of LiteLLM_SpendLogs as well, so that reports and budgets go on where they were.
    """
    from gateway.moving.report import Report

    if config is None and from_database is None:
        raise Problem("nothing to import", fix="farebox import litellm config.yaml --database postgres://...",
                      code=WRONG_USAGE)  # fmt: skip
    report = Report()
    value: dict[str, Any] = {}
    if config is not None:
        text = _settings(config, report)
        value["settings_file"] = str(out)
        if not common.dry_run:
            place(out).write_text(text, encoding="utf-8")
    made: list[Issued] = []
    if from_database is not None:
        texts = _texts(keys) if keys is not None else []
        made, value["requests"] = await _move(common, from_database, texts, history, report)
        hidden = {"key": None} if common.dry_run else {}
        value["keys"] = [msgspec.to_builtins(each) | hidden for each in made]
    value |= report.plain()
    emit(common, value, lambda: _table(value))
    return OK


def _settings(path: Path, report: Report) -> str:
    """Returns: a settings file of ours, that was read by our own reader. Raises: Problem."""
    import tempfile

    import yaml

    from gateway.config import ConfigError, load
    from gateway.moving.litellm_config import convert
    from gateway.moving.toml import dump

    try:
        said = yaml.safe_load(read_file(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Problem(f"{path}: {error}", fix="LiteLLM's config.yaml", code=WRONG_USAGE) from error
    if not isinstance(said, dict):
        raise Problem(f"{path} is no configuration of LiteLLM", fix="one with model_list", code=WRONG_USAGE)
    tree = convert(said, report)
    text = dump(tree, f"Made from LiteLLM's {path.name} by `farebox import litellm`.\n`farebox config check` reads it.")
    with tempfile.TemporaryDirectory(prefix="fbx-import-") as folder:
        checked = Path(folder) / "farebox.toml"
        checked.write_text(text, encoding="utf-8")
        try:
            load(checked, environ={})
        except ConfigError as error:
            raise Problem(f"{path}: what was made of it is refused: {error}", fix="correct it there") from error
    return text


async def _move(common: Changes, url: str, texts: list[str], history: bool, report: Report) -> tuple[list[Issued], int]:
    import asyncpg

    from gateway.moving.litellm_database import Move

    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as admin:
        try:
            source = await asyncpg.connect(_postgres(url), timeout=10)
        except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            fix = "postgres://user:password@host/litellm; the role needs to read only"
            raise Problem(f"LiteLLM's database: {error}", fix=fix, code=AWAY) from error
        try:
            move = Move(source, engine, admin, report, acting(ACTOR), time.time_ns())
            made = await move.people_and_keys(texts)
            requests = 0
            if history and (total := await move.count_spending()):
                with progress(common, "requests", total) as advance:
                    requests = await move.spending(advance)
            await admin.changed()
        finally:
            await source.close()
    return made, requests


def _postgres(url: str) -> str:
    """asyncpg knows neither Prisma's nor SQLAlchemy's additions. Raises: ValueError."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] not in ("postgres", "postgresql") or not rest:
        raise ValueError("not a postgres:// address")
    address, _, query = rest.partition("?")
    kept = "&".join(part for part in query.split("&") if part.partition("=")[0] in ("sslmode", "host", "port"))
    return f"postgresql://{address}" + (f"?{kept}" if kept else "")


def _texts(path: Path) -> list[str]:
    try:
        return read_file(path).decode().split()
    except (OSError, ValueError) as error:
        raise Problem(f"{path}: {error}", fix="a text file with one key a line", code=WRONG_USAGE) from error


def _table(value: dict[str, Any]) -> Any:
    from rich.console import Group

    parts: list[Any] = []
    for name, title in (("carried", "Carried"), ("changed", "Changed on the way"), ("not_carried", "Not carried")):
        rows = value[name]
        parts += [f"{title}: {len(rows)}", make_table(["what", "how" if name != "not_carried" else "instead"],
                                                    [[row["what"], row["why"]] for row in rows]), ""]  # fmt: skip
    if "settings_file" in value:
        parts.append(f"Settings: {value['settings_file']}; look at it, then name it farebox.toml.")
    if new := [each for each in value.get("keys", ()) if each["key"] is not None]:
        parts.append("New keys, shown once; give each to its owner:")
        columns = ["name", "was", "project", "key"]
        parts.append(make_table(columns, [[each[column] for column in columns] for each in new]))
    return Group(*parts)
