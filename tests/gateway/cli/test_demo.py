"""`farebox demo`: samples that add up, beside real data, and nothing left of them afterwards."""

from pathlib import Path
from typing import Any

from tests import services
from tests.gateway.cli.conftest import farebox, farebox_json
from tests.gateway.cli.test_import import litellm  # noqa: F401 - a fixture: somebody's real usage
from tests.gateway.cli.test_remote import _rows


def test_samples_add_up_and_leave_no_row_behind(
    litellm: str,  # noqa: F811
    fresh_database_url: str,
    tmp_path: Path,
) -> None:
    ours: dict[str, Any] = {"cwd": tmp_path, "DATABASE_URL": fresh_database_url}
    farebox("migrate", **ours)
    farebox("import", "litellm", "--database", litellm, **ours)
    before = services.in_thread(_rows(fresh_database_url))

    tried = farebox_json("demo", "--dry-run", "--days", "2", "--a-day", "10", **ours)
    assert (tried["requests"] > 0, tried["keys"]) == (True, [])
    assert services.in_thread(_rows(fresh_database_url)) == before

    made = farebox_json("demo", "--days", "10", "--a-day", "40", **ours)
    assert made["requests"] > 200
    assert {key["name"] for key in made["keys"]} == {"web", "ranking", "nightly", "desk", "ci"}
    assert farebox_json("ledger", "trial", **ours)["sound"] is True
    usage = {line["name"]: line for line in farebox_json("usage", "--by", "organisation", **ours)["lines"]}
    assert usage["Sample: Harbour Books"]["charge_pusd"] == made["charged_pusd"] > 0
    names = {o["name"]: o for o in farebox_json("ledger", "organisations", **ours)["organisations"]}
    assert names["Sample: Harbour Books"]["id"] == "org_sample"
    again = farebox_json("demo", "--days", "10", "--a-day", "40", "--traffic", "--seconds", "1", "--rate", "20", **ours)
    assert (again["requests"], again["keys"]) == (0, [])
    assert again["skipped"] == made["requests"]
    assert (again["live"]["requests"] > 0, again["live"]["real"]) == (True, False)
    assert farebox_json("top", "--once", "--window", "600", **ours)["total"]["requests"] > 0
    farebox("usage", "rebuild", **ours)  # days are sealed with the samples in them
    assert farebox_json("ledger", "trial", **ours)["sound"] is True

    gone = farebox_json("demo", "--clear", **ours)["removed"]
    assert gone["usage_records"] >= made["requests"]
    after = services.in_thread(_rows(fresh_database_url))
    # The log of changes is never shortened; days that were sealed are sealed again by the next worker.
    derived = {"audit", "usage_days", "usage_day_facets", "usage_day_waits", "usage_sealed"}
    assert {name: rows for name, rows in after.items() if name not in derived} == {
        name: rows for name, rows in before.items() if name not in derived
    }
    assert not any("org_sample" in row for name in derived - {"audit"} for row in after[name])
    assert "audit" not in gone
    assert farebox_json("audit", "verify", **ours)["intact"] is True
    assert farebox_json("ledger", "trial", **ours)["sound"] is True
    assert farebox_json("usage", **ours)["total_charge_pusd"] == 700 * 125_000_000
    assert farebox_json("demo", "--clear", **ours)["removed"] == {}


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for flags in (["--days", "0"], ["--clear", "--traffic"], ["--rate", "0"]):
        assert "--" in farebox("demo", *flags, cwd=tmp_path, check=2).stderr
    assert "farebox up" in farebox("demo", cwd=tmp_path, check=3).stderr
