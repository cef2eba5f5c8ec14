"""`farebox reconcile`: a provider's usage or cost export against our own rows."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from gateway.cli.common import DEFAULTS, NOT_WELL, OK, WRONG_USAGE, Common, Problem, database, emit, make_table, usd
from gateway.cli.offering import in_force
from gateway.cli.site import Read, read_file

app = App(name="reconcile")


@app.default
async def reconcile(
    provider: str,
    file: Read,
    /,
    *,
    by: Literal["model", "day"] = "model",
    name: tuple[str, ...] = (),
    differing: bool = False,
    common: Common = DEFAULTS,
) -> int:
    """Show, for each day and model, what the provider counted otherwise. Exit code 1 if any of it is unexplained.

    Parameters
    ----------
    provider:
        The provider's name as `farebox usage --by provider` shows it.
    file:
        JSON of OpenAI's or Anthropic's usage or cost API, or a CSV export: OpenAI, Anthropic, Groq, AWS Cost and Usage
        Report, Azure cost details, GCP billing (or its BigQuery rows as JSON), FOCUS of any cloud.
    by:
        day: all models of a day together, where the bill's names of models are not ours.
    name:
        What the bill calls a model, and what we do, as `--name "*Sonnet*=claude-sonnet-5"`; may be
        repeated.
    differing:
        Only lines with an unexplained difference.
    """
    from billing.bills import read_bill
    from billing.db import reading
    from billing.reconcile import providers
    from billing.reconcile import reconcile as compare

    names = dict(pair.rpartition("=")[::2] for pair in name)
    if not all(pattern and ours for pattern, ours in names.items()):
        raise Problem("--name: a pattern and a name", fix='--name "*Sonnet*=claude-sonnet-5"', code=WRONG_USAGE)
    try:
        bill = read_bill(read_file(file))
    except (OSError, ValueError) as error:
        raise Problem(f"{file}: {error}", fix="see `farebox reconcile --help`", code=WRONG_USAGE) from error
    settings = common.settings()
    async with database(settings) as engine, reading(engine) as db:
        if provider not in (asked := await providers(db)):
            # One that was never asked and sends a bill all the same is worth a look, if it is ours at all.
            known = sorted({*asked, *(await in_force(settings))[0].providers})
            if provider not in known:
                fix = f"one of: {', '.join(known) or 'none yet'}"
                raise Problem(f"no provider {provider!r}", fix=fix, code=WRONG_USAGE)
        found = await compare(db, provider, bill, names=names, by_day=by == "day")
    unexplained = [line for line in found if not line.explained]
    rows = [
        {
            "day": line.day,
            "model": line.model,
            "input_tokens": line.ours.input_tokens,
            "their_input_tokens": None if line.theirs is None else line.theirs.input_tokens,
            "output_tokens": line.ours.output_tokens,
            "their_output_tokens": None if line.theirs is None else line.theirs.output_tokens,
            "cost_usd": usd(line.ours.cost_pusd),
            "their_cost_usd": None if line.theirs is None else usd(line.theirs.cost_pusd),
            "estimated_cost_usd": usd(line.estimated.cost_pusd),
            "unexplained_input_tokens": line.unexplained_input_tokens,
            "unexplained_output_tokens": line.unexplained_output_tokens,
            "unexplained_cost_usd": usd(line.unexplained_cost_pusd),
        }
        for line in (unexplained if differing else found)
    ]
    value = {"provider": provider, "lines": rows, "unexplained": len(unexplained)}
    columns = [
        "day", "model", "output_tokens", "their_output_tokens", "cost_usd", "their_cost_usd",
        "unexplained_input_tokens", "unexplained_output_tokens", "unexplained_cost_usd",
    ]  # fmt: skip
    emit(common, value, lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=columns[2:]))
    return NOT_WELL if unexplained else OK
