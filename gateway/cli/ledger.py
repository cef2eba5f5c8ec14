"""`farebox ledger`: the accounts, and the audit over all postings."""

from __future__ import annotations

from cyclopts import App

from gateway.cli.common import DEFAULTS, NOT_WELL, OK, Common, database, emit, make_table, usd

app = App(name="ledger")


@app.command
async def balance(*, common: Common = DEFAULTS) -> int:
    """Show every account's balance, on the side where the account grows, in US dollars."""
    from billing.db import reading
    from billing.ledger import balances

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await balances(db)
    rows = [
        {
            "account": entry.account,
            "kind": entry.kind.value,
            "balance_usd": usd(entry.normal_pusd),
            "balance_pusd": entry.normal_pusd,
        }
        for entry in found
    ]
    columns = ["account", "kind", "balance_usd"]
    emit(
        common,
        {"accounts": rows},
        lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=["balance_usd"]),
    )
    return OK


@app.command
async def trial(*, common: Common = DEFAULTS) -> int:
    """Add up every posting anew and compare with the balances kept. Exit code 1 if anything differs."""
    from billing.db import reading
    from billing.ledger import trial_balance

    async with database(common.settings()) as engine, reading(engine) as db:
        result = await trial_balance(db)
    value = {
        "sound": result.sound,
        "debits_minus_credits_pusd": result.debits_minus_credits_pusd,
        "differing": list(result.differing),
    }
    emit(
        common,
        value,
        lambda: (
            "debits equal credits, and every balance is the sum of its postings"
            if result.sound
            else f"NOT SOUND: debits minus credits {result.debits_minus_credits_pusd} pUSD; "
            f"differing accounts: {', '.join(result.differing) or 'none'}"
        ),
    )
    return OK if result.sound else NOT_WELL
