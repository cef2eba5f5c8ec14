"""Commands about money: price lists, margins, payments, invoices, bills of providers. Each on a database of its own."""

import json
from pathlib import Path

import pytest

from billing import accounts
from billing.db import create_engine, writing
from billing.journal import Journal
from billing.pricelist import load_prices
from billing.worker import Worker
from tests import services
from tests.billing.make import AT_NS, record
from tests.gateway.cli.conftest import farebox, farebox_json

PRICES = {
    "gpt-test": {"litellm_provider": "openai", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
                 "input_cost_per_token_priority": 6e-06, "output_cost_per_token_priority": 3e-05},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A migrated installation with one organisation."""
    farebox("migrate", cwd=tmp_path)
    services.in_thread(declare(tmp_path))
    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    return tmp_path


def database_of(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{next((folder / '.farebox').glob('*.db'))}"


async def declare(folder: Path) -> None:
    engine = create_engine(database_of(folder))
    async with writing(engine) as db:
        await accounts.create_organisation(db, "org_1", "One", at_ns=0)
    await engine.dispose()


async def use(folder: Path) -> None:
    """One request at the imported price, with the organisation's margin."""
    engine = create_engine(database_of(folder))
    async with writing(engine) as db:
        book = await load_prices(db)
    sheet = book.sheet("openai", "gpt-test", 2**62, organisation_id="org_1")
    journal = Journal.open(folder / "journal", "gw")
    await journal.settle(record("r1", price_id=sheet.id))
    await journal.settle(record("scaled", price_id=sheet.id, organisation_id="org_2", variant="scale"))
    await journal.close()
    await Worker(folder / "journal", engine, book).ship_once()
    await engine.dispose()


def test_from_a_price_list_to_an_invoice_and_the_providers_bill(folder: Path) -> None:
    before = farebox_json("prices", "diff", "prices.json", cwd=folder, check=1)
    assert {(d["variant"], d["meter"], d["ours"], d["theirs"]) for d in before["differences"]} == {
        ("", "input_tokens", None, "3"), ("", "output_tokens", None, "15"),
        ("priority", "input_tokens", None, "6"), ("priority", "output_tokens", None, "30"),
    }  # fmt: skip
    assert farebox_json("prices", "import", "prices.json", cwd=folder)["imported"] == 2
    assert farebox_json("prices", "diff", "prices.json", cwd=folder)["differences"] == []
    farebox(
        "prices", "set", "openai", "gpt-test", "--input", "7", "--output", "31", "--variant", "priority", cwd=folder
    )
    again = farebox_json("prices", "import", "prices.json", cwd=folder)
    assert (again["imported"], again["disagreeing_and_kept"]) == (0, 1)
    farebox("prices", "margin", "plan", "team", "150", cwd=folder)
    farebox("prices", "plan", "org_1", "team", cwd=folder)
    services.in_thread(use(folder))
    cost = 90 * 3_000_000 + 20 * 15_000_000
    paid = farebox_json("topup", "pay", "org_1", "25usd", "--id", "bank-7", cwd=folder)
    assert paid["new"]
    assert not farebox_json("topup", "pay", "org_1", "25usd", "--id", "bank-7", cwd=folder)["new"]
    assert farebox_json("topup", "grant", "org_1", "1usd", "--expires", "2200-01-01", cwd=folder)["new"]
    assert farebox_json("topup", "expire", cwd=folder)["taken_back_pusd"] == 0
    month = "2026-11"
    bill = farebox_json("invoice", "org_1", month, "--csv", "i.csv", "--pdf", "i.pdf", cwd=folder)
    assert (bill["usage_pusd"], bill["differing_pusd"]) == (cost * 3 // 2, 0)
    assert (folder / "i.pdf").read_bytes().startswith(b"%PDF-")
    assert "gpt-test,1,90,20,-0.000855" in (folder / "i.csv").read_text()
    # An answer of a tier that nobody had priced is charged as soon as somebody has.
    tier = ("openai", "gpt-test", "--input", "9", "--output", "9", "--variant", "scale")
    assert [farebox_json("prices", "set", *tier, cwd=folder)["posted"] for _ in range(2)] == [1, 0]
    usage = {"data": [{"start_time": AT_NS // 10**9, "results": [
        {"model": "gpt-test", "input_tokens": 180, "output_tokens": 41}
    ]}]}  # fmt: skip
    (folder / "usage.json").write_text(json.dumps(usage))
    unknown = farebox("reconcile", "openapi", "usage.json", cwd=folder, check=2)
    assert "no provider 'openapi'" in unknown.stderr
    assert "one of: openai" in unknown.stderr
    found = farebox_json("reconcile", "openai", "usage.json", "--differing", cwd=folder, check=1)
    assert [line["unexplained_output_tokens"] for line in found["lines"]] == [1]
    farebox("ledger", "trial", cwd=folder)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["prices", "diff", "nothing.json"], 2, "nothing.json"),
        (["prices", "margin", "plan", "team", "12.345"], 2, "12.345"),
        (["topup", "pay", "org_2", "5usd"], 1, "org_2"),
        (["topup", "pay", "org_1", "0usd"], 2, "amount"),
        (["topup", "grant", "org_1", "5usd", "--expires", "2020-01-01"], 2, "over"),
        (["topup", "grant", "org_1", "5usd", "--expires", "soon"], 2, "soon"),
        (["topup", "grant", "org_1", "5usd", "--expires", "2999-01-01"], 2, "2262"),
        (["invoice", "org_1", "November"], 2, "month"),
        (["invoice", "nobody", "2026-11"], 1, "take the id of one: org_1 (One)"),
        (["invoice", "nobody"], 1, "take the id of one: org_1 (One)"),
        (["reconcile", "openai", "prices.json"], 2, "data"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(folder: Path, command: list[str], code: int, says: str) -> None:
    refused = farebox(*command, cwd=folder, check=code)
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_who_pays_how_and_money_by_hand(folder: Path) -> None:
    assert farebox_json("ledger", "limit", "org_1", "50usd", cwd=folder)["credit_limit_usd"] == "50.00"
    assert farebox_json("ledger", "currency", "org_1", "EUR", cwd=folder)["currency"] == "EUR"
    farebox_json("topup", "pay", "org_1", "20usd", "--id", "p1", cwd=folder)
    assert farebox_json("topup", "payout", "org_1", "5usd", "--note", "closed", "--id", "o1", cwd=folder)["new"]
    assert not farebox_json("topup", "payout", "org_1", "5usd", "--note", "closed", "--id", "o1", cwd=folder)["new"]
    farebox("topup", "refund", "org_1", "1usd", "--note", "bad answer", cwd=folder)
    farebox("topup", "adjust", "--note", "booked twice", "--", "org_1", "-2usd", cwd=folder)
    (said,) = farebox_json("ledger", "organisations", cwd=folder)["organisations"]
    assert said == {
        "id": "org_1", "name": "One", "pays": "ahead or owing", "credit_limit_usd": "50.00", "left_usd": "14.00",
        "currency": "EUR",
    }  # fmt: skip
    assert farebox_json("ledger", "trial", cwd=folder)["sound"]
    refused = farebox("topup", "payout", "org_1", "1000usd", "--note", "x", cwd=folder, check=1)
    assert "1000.00 USD wanted, 14.00 USD available" in refused.stderr
    month = farebox("invoice", "org_1", "2026-11", cwd=folder, check=1)
    assert "farebox prices rate EUR" in month.stderr
    farebox("prices", "rate", "EUR", "0.5", "--since", "2026-01-01", "--source", "ECB", cwd=folder)
    farebox("prices", "rate", "EUR", "0.6", "--since", "2026-01-01", cwd=folder, check=2)
    assert farebox_json("prices", "rates", cwd=folder)["rates"] == [
        {"currency": "EUR", "per_usd": "0.5", "since": "2026-01-01", "source": "ECB"}
    ]
    bill = farebox_json("invoice", "One", "2026-11", cwd=folder)
    assert (bill["currency"], bill["usd_rate"], bill["rate_day"]) == ("EUR", "0.5", "2026-01-01")
    for bad in (
        ["ledger", "limit", "org_1", "lots"], ["ledger", "limit", "--", "org_1", "-1usd"],
        ["ledger", "currency", "org_1", "euros"], ["prices", "rate", "EUR", "0"],
        ["topup", "refund", "org_1", "0usd", "--note", "x"], ["ledger", "open", "Two", "--limit", "x"],
    ):  # fmt: skip
        assert "fix" in farebox(*bad, cwd=folder, check=2).stderr
    farebox("ledger", "limit", "nobody", "none", cwd=folder, check=1)
    assert farebox_json("ledger", "limit", "org_1", "none", cwd=folder)["credit_limit_usd"] is None
    opened = farebox_json("ledger", "open", "Two", "--limit", "9usd", "--id", "org_2", cwd=folder)
    assert opened == {"id": "org_2", "name": "Two", "credit_limit_usd": "9.00", "currency": "USD"}
    assert "already" in farebox("ledger", "open", "Two", cwd=folder, check=1).stderr
    farebox("prices", "margin", "organisation", "Two", "120", cwd=folder)
    farebox("prices", "plan", "nobody", "team", cwd=folder, check=1)
    # Each once, by whom, and nothing of what was refused.
    rows = farebox_json("audit", "list", "--limit", "50", cwd=folder)["audit"]
    assert [row["action"] for row in rows] == [
        "ledger.limit", "ledger.currency", "ledger.top_up", "ledger.pay_out", "ledger.refund", "ledger.adjust",
        "prices.rate", "ledger.limit", "organisations.create", "prices.margin",
    ]  # fmt: skip
    assert rows[2]["after"] == {"amount_usd": "20.00", "id": "p1"}
    assert {row["actor"] for row in rows} == {"farebox ledger", "farebox topup", "farebox prices"}
    farebox("audit", "verify", cwd=folder)


def test_sums_are_made_anew_by_the_command(folder: Path) -> None:
    farebox("prices", "import", "prices.json", cwd=folder)
    services.in_thread(use(folder))
    before = farebox_json("usage", "--by", "deployment", cwd=folder)
    assert farebox_json("usage", "rebuild", cwd=folder)["days"] >= 0
    assert farebox_json("usage", "--by", "deployment", cwd=folder) == before
    assert before["lines"][0]["deployment"] == "openai/gpt-test"
