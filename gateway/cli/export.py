"""`farebox export`: single requests as files, and what metering services have not heard of yet."""

from __future__ import annotations

import time

from cyclopts import App

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    day_ns,
    emit,
    make_table,
)
from gateway.cli.site import Written, place

app = App(name="export")


@app.command
async def usage(
    *,
    csv: Written | None = None,
    parquet: Written | None = None,
    since: str = "",
    until: str = "",
    common: Common = DEFAULTS,
) -> int:
    """Write every request with all that is known of it, in the order of time.

    Parameters
    ----------
    csv:
        One file; compressed if its name ends in .gz.
    parquet:
        A folder that gets one file for each day. Needs: pip install 'farebox[parquet]'.
    since:
        The first day, as 2026-11-01 (UTC). Default: from the beginning.
    until:
        The last day. Default: up to now.
    """
    from billing import archive
    from billing.db import reading
    from billing.sums import NS_PER_DAY

    if (csv is None) == (parquet is None):
        raise Problem("say where to: --csv FILE or --parquet FOLDER", code=WRONG_USAGE)
    since_ns = _day_ns("since", since) if since else 0
    until_ns = _day_ns("until", until) + NS_PER_DAY if until else time.time_ns()
    async with database(common.settings()) as engine, reading(engine) as db:
        try:
            if csv is not None:
                rows = await archive.write(db, place(csv), since_ns, until_ns, "csv")
                value: dict[str, object] = {"rows": rows, "files": [str(csv)]}
                files = [csv]
            else:
                assert parquet is not None
                made = await archive.write_days(db, place(parquet), since_ns, until_ns, "parquet")
                files = [parquet / path.name for path in made]
                value = {"files": [str(path) for path in files]}
        except archive.NoParquet as error:
            raise Problem(str(error), fix="or write --csv") from error
        except OSError as error:
            raise Problem(f"{csv or parquet}: {error.strerror}", fix="a place that can be written to") from error
    emit(common, value, lambda: "\n".join(map(str, files)) or "nothing in that time")
    return OK


@app.command
async def status(*, common: Common = DEFAULTS) -> int:
    """Show what each metering service has not heard of yet. Exit code 1 if some of it was refused or not heard."""
    from billing import exports
    from billing.db import reading

    settings = common.settings()
    async with database(settings) as engine, reading(engine) as db:
        found = {each.export: each for each in await exports.backlogs(db)}
    rows = []
    for name in sorted(settings.exports.keys() | found.keys()):
        each = found.get(name) or exports.Backlog(name, 0, 0, None)
        kind = settings.exports[name].kind if name in settings.exports else None
        rows.append({"export": name, "kind": kind, "waiting": each.waiting, "failing": each.failing,
                     "problem": each.problem})  # fmt: skip
    columns = ["export", "kind", "waiting", "failing", "problem"]
    emit(
        common,
        {"exports": rows},
        lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=columns[2:4]),
    )
    return NOT_WELL if any(row["failing"] for row in rows) else OK


@app.command
async def again(export: str, /, *, since: str, until: str = "", common: Changes = CHANGES) -> int:
    """Tell a metering service of requests from before it was connected, or once more under the same ids.

    Parameters
    ----------
    export:
        Its name in the settings.
    since:
        The first day, as 2026-11-01 (UTC). A Stripe meter takes 35 days back and knows an id again for one day only.
    until:
        The last day. Default: up to now.
    """
    from billing import exports
    from billing.db import writing
    from billing.sums import NS_PER_DAY

    settings = common.settings()
    if export not in settings.exports:
        fix = f"one of: {', '.join(sorted(settings.exports)) or 'none is set, see [exports.NAME] in the settings'}"
        raise Problem(f"no export is called {export!r}", fix=fix, code=WRONG_USAGE)
    until_ns = _day_ns("until", until) + NS_PER_DAY if until else time.time_ns()
    async with database(settings, dry=common.dry_run) as engine, writing(engine) as db:
        queued = await exports.enqueue_span(db, export, _day_ns("since", since), until_ns)
    emit(common, {"export": export, "queued": queued}, lambda: f"{queued} requests will be told to {export}")
    return OK


def _day_ns(flag: str, text: str) -> int:
    try:
        return day_ns(text)
    except ValueError as error:
        raise Problem(f"--{flag}: {error}", fix="as 2026-11-01", code=WRONG_USAGE) from error
