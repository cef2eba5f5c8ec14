"""What can be changed, and that every change leaves its trace and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import insert, literal, select

from billing.db import reading, writing
from billing.journal import Journal
from billing.money import parse_usd
from billing.usage import Meter
from billing.worker import Worker
from gateway import audit
from gateway.admin.auth.roles import Role
from gateway.admin.openapi import PATH, encoded
from gateway.admin.problems import MEDIA_TYPE
from gateway.admission.minting import hash_of
from gateway.admission.store import store_from
from gateway.catalogue.document import ProviderEntry
from gateway.identity import key_secrets
from gateway.schema import virtual_keys
from tests.gateway.admin.client import BASE, Browser
from tests.gateway.admin.world import DAY_NS, World, traffic


async def _last(made: World, browser: Browser) -> dict[str, Any]:
    """The newest audit row; the chain is whole."""
    async with reading(made.engine) as db:
        assert (await audit.verify(db)).broken_at is None
    found: dict[str, Any] = (await browser.get("/audit", limit=1))["items"][0]
    return found


async def test_a_key_is_shown_once_and_lives_by_its_terms(made: World, browser: Browser) -> None:
    asked = {
        "project_id": "proj_shop", "name": "till 4", "models": ["gpt-*"], "rpm": 60,
        "weight": 3, "allow_ips": ["10.0.0.0/8"], "budgets": [{"limit_usd": "0.01", "window": "day"}],
        "expires_at": "2027-01-01T00:00:00Z",
    }  # fmt: skip
    shown = await browser.send("POST", "/keys", asked)
    secret, key = shown["secret"], shown["key"]
    assert secret.startswith(key["shown"])
    assert (key["models"], key["rpm"], key["allow_ips"], key["state"]) == (["gpt-*"], 60, ["10.0.0.0/8"], "active")
    assert key["weight"] == 3
    assert [(b["window"], b["limit_usd"], b["spent_usd"]) for b in key["budgets"]] == [("day", "0.01", "0.00")]
    trace = await _last(made, browser)
    assert (trace["actor"], trace["action"], trace["subject"]) == (browser.session["name"], "key.create", key["id"])
    listed = await browser.call("GET", "/keys")
    for text in (listed.text, str(trace)):
        assert secret not in text
        assert hash_of(secret, b"pepper").hex() not in text
    changed = await browser.send("PATCH", f"/keys/{key['id']}", {"rpm": None, "weight": None, "name": "till 5"})
    assert (changed["rpm"], changed["weight"], changed["name"]) == (None, 1, "till 5")
    assert changed["models"] == ["gpt-*"]
    revoked = await browser.send("DELETE", f"/keys/{key['id']}")
    assert revoked["state"] == "revoked"
    assert (await _last(made, browser))["action"] == "key.revoke"


async def test_losses_are_said_by_the_nearest(made: World, browser: Browser) -> None:
    shown = await browser.send("POST", "/keys", {"project_id": "proj_shop", "name": "till 5"})
    key, project = f"/losses/key/{shown['key']['id']}", "/losses/project/proj_shop"

    async def said(path: str) -> tuple[Any, ...]:
        found = await browser.get(path)
        return found["own"], found["effective"], found["said_by"]

    assert await said(key) == (None, "strict", "settings")
    await browser.send("PUT", project, {"mode": "lenient"})
    assert (await said(key), await said(project)) == ((None, "lenient", "project"), ("lenient", "lenient", "project"))
    told = await browser.send("PUT", key, {"mode": "strict"})
    assert (told["own"], told["said_by"]) == ("strict", "key")
    trace = await _last(made, browser)
    assert (trace["action"], trace["after"]) == ("key.losses", {"losses": "strict"})
    await browser.send("PUT", key, {"mode": None})
    await browser.send("PUT", project, {"mode": None})
    assert await said(key) == (None, "strict", "settings")
    assert (await browser.call("PUT", project, {"mode": "loose"})).status_code == 422
    assert (await browser.call("GET", "/losses/team/none")).status_code == 422
    assert (await browser.call("GET", "/losses/key/none")).status_code == 404
    assert (await browser.call("PUT", "/losses/project/none", {"mode": "strict"})).status_code == 404


async def test_a_project_says_what_a_second_is_worth(made: World, browser: Browser) -> None:
    path = "/projects/proj_shop/routing"
    silent = {"project_id": "proj_shop", "second_usd": None, "cache_prompts": None}
    assert await browser.get(path) == silent
    said = {"second_usd": "0.02", "cache_prompts": True}
    assert await browser.send("PUT", path, said) == {"project_id": "proj_shop"} | said
    assert await browser.get(path) == {"project_id": "proj_shop"} | said
    trace = await _last(made, browser)
    assert (trace["action"], trace["subject"]) == ("project.routing", "proj_shop")
    assert trace["after"] == {"second_pusd": 20_000_000_000, "cache_prompts": True}
    for wrong in ({"second_usd": "-1"}, {"second_usd": "soon"}, {"second_usd": "1000001"}, {"weight": 1}):
        refused = await browser.call("PUT", path, wrong)
        assert refused.status_code in (400, 422), refused.text
    assert (await browser.call("GET", "/projects/none/routing")).status_code == 404
    assert await browser.send("PUT", path, {}) == silent


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"project_id": "none"}, 404),
        ({"name": ""}, 422),
        ({"rpm": -1}, 422),
        ({"weight": 0}, 422),
        ({"weight": 1001}, 422),
        ({"allow_ips": ["10.0.0.0/99"]}, 422),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"budgets": [{"limit_usd": "-1"}]}, 422),
        ({"budgets": [{"limit_usd": "0.0000000000001"}]}, 422),
        ({"colour": "red"}, 422),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_bad_key_is_refused_and_nothing_is_made(small: World, change: dict[str, object], status: int) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        before = len((await browser.get("/keys"))["items"])
        refused = await browser.call("POST", "/keys", {"project_id": "proj_shop", "name": "k", **change})
        assert (refused.status_code, refused.headers["content-type"]) == (status, MEDIA_TYPE)
        assert refused.json()["todo"]
        assert len((await browser.get("/keys"))["items"]) == before


async def test_keys_come_in_pages_the_newest_first_and_are_found_by_name_or_beginning(small: World) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        old = {key["id"] for key in (await browser.get("/keys"))["items"]}
        made = []
        for name in ("till 1", "till_2", "Till 3", "kiosk"):
            small.now_ns += 1
            made.append((await browser.send("POST", "/keys", {"project_id": "proj_shop", "name": name}))["key"])
        await browser.send("DELETE", f"/keys/{made[0]['id']}")
        paged: list[str] = []
        cursor = None
        while cursor is not None or not paged:
            page = await browser.get("/keys", limit=2, cursor=cursor)
            assert 0 < len(page["items"]) <= 2
            paged += [key["id"] for key in page["items"]]
            cursor = page["next"]
        assert paged[:4] == [key["id"] for key in reversed(made)]
        assert len(paged) == len(set(paged)) == len(old) + 4

        async def found(**asked: object) -> list[str]:
            return [key["name"] for key in (await browser.get("/keys", **asked))["items"]]

        assert await found(like="TILL") == ["Till 3", "till_2", "till 1"]
        assert await found(like="till", active="true") == ["Till 3", "till_2"]
        assert await found(like="till_") == ["till_2"]  # taken as it is, not as a wild card
        assert await found(like=made[3]["shown"]) == ["kiosk"]
        assert await found(like="till", project_id="proj_search") == []
        assert (await browser.get(f"/keys/{made[2]['id']}"))["name"] == "Till 3"
        assert (await browser.call("GET", "/keys/none")).status_code == 404
        assert (await browser.call("GET", "/keys?cursor=nonsense")).status_code == 422


async def test_a_playground_key_is_gone_after_an_hour(small: World) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        made = await browser.send("POST", "/playground/key", {"project_id": "proj_shop"})
        small.now_ns += 3_600 * 10**9
        states = {key["id"]: key["state"] for key in (await browser.get("/keys"))["items"]}
        assert states[made["key"]["id"]] == "expired"


async def test_a_budget_is_set_changed_and_taken_away(made: World, browser: Browser) -> None:
    path = "/budgets/project/proj_search/month"
    said = await browser.send("PUT", path, {"limit_usd": "$25"})
    assert (said["label"], said["limit_usd"], said["window"]) == ("Search", "25.00", "month")
    await browser.send("PUT", path, {"limit_usd": "30"})
    trace = await _last(made, browser)
    assert trace["before"] == {"month": 25 * 10**12}
    assert trace["after"] == {"month": 30 * 10**12}
    assert (await browser.call("DELETE", path)).status_code == 204
    assert (await browser.call("DELETE", path)).status_code == 404
    assert (await browser.call("PUT", "/budgets/project/none/month", {"limit_usd": "1"})).status_code == 404
    assert (await browser.call("PUT", "/budgets/planet/proj_search/month", {"limit_usd": "1"})).status_code == 422


async def test_a_top_up_sent_twice_moves_money_once(made: World, browser: Browser) -> None:
    body = {"organisation_id": "org_1", "amount_usd": "12.5", "note": "Bank transfer 77"}
    first = await browser.send("POST", "/ledger/top-ups", body, **{"idempotency-key": "bank-0077"})
    again = await browser.send("POST", "/ledger/top-ups", body, **{"idempotency-key": "bank-0077"})
    assert (first["new"], again["new"]) == (True, False)
    assert first["left_usd"] == again["left_usd"] == "512.50"
    other = await browser.call(
        "POST", "/ledger/top-ups", {**body, "amount_usd": "13"}, **{"idempotency-key": "bank-0077"}
    )
    assert (other.status_code, other.json()["type"]) == (409, "urn:farebox:problem:already-posted")
    assert (await browser.call("POST", "/ledger/top-ups", body)).status_code == 422  # Without the header.
    traces = (await browser.get("/audit", action="ledger.top_up"))["items"]
    assert [(trace["note"], trace["after"]["amount_usd"]) for trace in traces] == [("Bank transfer 77", "12.50")]
    balances = await browser.get("/ledger/balances")
    assert {each["account"]: each["balance_usd"] for each in balances["accounts"]}["cash"] == "512.50"
    assert (await browser.get("/ledger/audit")) == {
        "sound": True, "debits_minus_credits_usd": "0.00", "differing": [],
    }  # fmt: skip
    transfers = await browser.get("/ledger/transfers", account="customer:org_1", kind="topup", limit=1)
    assert parse_usd(transfers["items"][0]["amount_usd"]) == parse_usd("12.5")
    assert transfers["next"]


async def test_a_price_counts_from_now_on_and_history_stays(made: World, browser: Browser) -> None:
    place = {"provider": "groq", "model": "llama-4-scout"}
    before = await browser.get("/prices", **place)
    made.now_ns += DAY_NS
    after = await browser.send("POST", "/prices", {**place, "sale": {"input_tokens": "0.2", "output_tokens": "0.5"}})
    assert [row["sale"].get("input_tokens") for row in after][:2] == ["0.20", "0.11"]
    assert [row["in_force"] for row in after][:2] == [True, False]
    assert after[1:] == [{**row, "in_force": False} for row in before]
    # The process sells by it at once.
    sheet = made.prices.sheet("groq", "llama-4-scout", made.now_ns)
    assert sheet.id == after[0]["id"]
    finer = {**place, "sale": {"input_tokens": "0.0000001", "output_tokens": "1"}}
    assert (await browser.call("POST", "/prices", finer)).status_code == 422
    unpriced = {**place, "sale": {"input_tokens": "1"}}
    assert (await browser.call("POST", "/prices", unpriced)).status_code == 422


async def test_a_price_stands_though_its_counting_has_to_wait(made: World, browser: Browser, redis_url: str) -> None:
    """After the commit the database does not say what has to be counted anew."""
    made.keys._redis = store_from(redis_url)
    said = {"provider": "groq", "model": "llama-4-scout", "sale": {"input_tokens": "0.3", "output_tokens": "0.6"}}
    async with writing(made.engine) as db:
        await db.exec_driver_sql("ALTER TABLE late_charges RENAME TO away")
    try:
        answer = await browser.call("POST", "/prices", said)
    finally:
        async with writing(made.engine) as db:
            await db.exec_driver_sql("ALTER TABLE away RENAME TO late_charges")
    assert answer.is_success, answer.text
    assert answer.json()[0]["sale"]["input_tokens"] == "0.30"


async def test_a_price_charges_what_waited_for_it(made: World, browser: Browser, tmp_path: Path) -> None:
    (one,) = await traffic(made, tmp_path / "known", 1)
    used = {Meter.INPUT_TOKENS: 1_000, Meter.OUTPUT_TOKENS: 10}
    late = replace(one, id="req_late", provider="groq", model="brand-new", price_id="none", quantities=used)
    journal = Journal.open(tmp_path / "late", "late")
    await journal.settle(late)
    await journal.close()
    await Worker(tmp_path / "late", made.engine, made.prices).ship_once()
    assert (await browser.get("/requests/req_late"))["request"]["charge_usd"] is None
    said = {"provider": "groq", "model": "brand-new", "sale": {"input_tokens": "1", "output_tokens": "2"}}
    await browser.send("POST", "/prices", said)
    assert parse_usd((await browser.get("/requests/req_late"))["request"]["charge_usd"]) == parse_usd("0.00102")


async def test_a_project_has_a_name_of_its_own(made: World, browser: Browser) -> None:
    new = await browser.send("POST", "/projects", {"name": "Research"})
    assert new["organisation"] == "Harbour Books"
    taken = await browser.call("POST", "/projects", {"name": "Research"})
    assert (taken.status_code, taken.json()["type"]) == (409, "urn:farebox:problem:name-taken")


async def test_the_engine_is_asked_for_its_figures(small: World, tmp_path: Path) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        assert (await browser.get("/engine"))["state"] == "off"


async def test_engines_of_ones_own_are_asked_and_others_are_not(small: World) -> None:
    """Two replicas, one of them as it is in the settings; one that is gone; one that is no engine; strangers."""
    text = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="qwen"} 3.0
vllm:num_requests_running{model_name="lora"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="qwen"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="4096"} 1.0
"""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if request.url.host == "10.0.0.2":
            raise httpx.ConnectError("nobody")
        return httpx.Response(404) if request.url.host == "10.0.0.1" else httpx.Response(200, content=text)

    settings = replace(small.services.settings, local=replace(small.services.settings.local, base_url="http://here:1"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        small.services = dataclasses.replace(small.services, settings=settings, http=http, engine_key="secret")
        told = {
            "plain": ProviderEntry(kind="openai_like", base_url="http://10.0.0.1:8000/v1", allow_private=True),
            "gone": ProviderEntry(kind="openai_like", base_url="http://10.0.0.2:8000/v1", allow_private=True),
            "ten": ProviderEntry(kind="openai_like", base_url="http://10.0.0.7:8000/v1", allow_private=True),
            "far": ProviderEntry(kind="openai_like", base_url="https://8.8.8.8/v1"),
            "off": ProviderEntry(
                kind="openai_like", base_url="http://10.0.0.9:8000", allow_private=True, enabled=False
            ),
        }
        for name, entry in told.items():
            await small.services.yard.changes.put("providers", name, entry, actor="ann", now_ns=small.now_ns)
        await small.services.yard.offer.load()
        async with Browser(small.app()) as browser:
            await browser.sign_in(await small.link(Role.VIEWER))
            found = {each["name"]: each for each in await browser.get("/engines")}
    assert list(found) == ["local", "gone", "plain", "ten"]
    assert {name: each["state"] for name, each in found.items()} == {
        "local": "up", "gone": "away", "plain": "away", "ten": "up",
    }  # fmt: skip
    ten = found["ten"]
    assert (ten["kv_blocks"], ten["kv_used"], ten["models"]) == (4096, 0.25, ["lora", "qwen"])
    assert ten["figures"]["vllm:num_requests_running"] == 4.0
    assert "status 404" in found["plain"]["detail"]
    assert sorted(asked) == sorted(f"http://{host}/metrics" for host in
                                   ("here:1", "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.7:8000"))  # fmt: skip


async def test_settings_hold_no_secret(small: World) -> None:
    async with Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        said = await browser.get("/settings")
        assert said["database"].startswith("SQLite 3.")
        assert said["settings"]["server"]["port"] == 4000


def test_the_dashboards_types_come_from_this_api() -> None:
    assert PATH.read_bytes() == encoded(), "run `python -m gateway.admin.openapi`"


def _dist(folder: Path) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text('<meta name="csp-nonce" content="__NONCE__"><div id="root"></div>')
    (folder / "assets" / "index-abc.js").write_text("let built = 1;")
    (folder / "assets" / "index-abc.js.br").write_bytes(b"brotli")
    (folder / "favicon.svg").write_text("<svg/>")
    (folder.parent / "secret.txt").write_text("not to be served")
    return folder


async def test_pages_are_served_under_a_strict_policy_and_hashed_files_for_ever(small: World, tmp_path: Path) -> None:
    app = small.app(_dist(tmp_path / "dist"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE) as http:  # type: ignore[arg-type]
        pages = [await http.get(path) for path in ("/ui", "/ui/", "/ui/keys", "/ui/sign-in?next=/keys")]
        nonces = set()
        for page in pages:
            policy = page.headers["content-security-policy"]
            nonce = policy.partition("'nonce-")[2].partition("'")[0]
            assert f'content="{nonce}"' in page.text
            assert "unsafe" not in policy
            assert page.headers["cache-control"] == "no-store"
            nonces.add(nonce)
        assert len(nonces) == len(pages)
        script = await http.get("/ui/assets/index-abc.js", headers={"accept-encoding": "identity"})
        assert "immutable" in script.headers["cache-control"]
        assert script.headers["content-type"].startswith("text/javascript")
        assert script.text == "let built = 1;"
        assert (await http.get("/ui/favicon.svg")).headers["cache-control"] == "no-cache"
        for path in ("/ui/assets/gone.js", "/ui/../secret.txt", "/ui/%2e%2e/secret.txt", "/ui/index-abc.js.br"):
            assert "not to be served" not in (await http.get(path)).text
        assert (await http.get("/ui/assets/gone.js")).status_code == 404
        # Another version was installed while this one runs.
        (tmp_path / "dist" / "assets" / "index-abc.js").unlink()
        gone = await http.get("/ui/assets/index-abc.js", headers={"accept-encoding": "identity"})
        assert gone.status_code == 404


async def test_an_installation_without_the_build_says_how_to_get_it(small: World, tmp_path: Path) -> None:
    app = small.app(tmp_path / "nothing")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE) as http:  # type: ignore[arg-type]
        page = await http.get("/ui")
        assert page.status_code == 200
        assert "npm run build" in page.text
        assert "__NONCE__" not in page.text


async def test_the_second_of_two_who_change_one_thing_is_told_of_a_conflict(made: World, browser: Browser) -> None:
    """As where two rotate one key: what the other wrote since is there when this one writes."""
    shown = await browser.send("POST", "/keys", {"project_id": "proj_shop", "name": "till 9"})
    key = virtual_keys.c
    old = select(key.public_id, key.secret_hash, key.id, literal(1)).where(key.id == shown["key"]["id"])
    async with writing(made.engine) as db:
        await db.execute(insert(key_secrets).from_select(["public_id", "secret_hash", "key_id", "until_ns"], old))
    refused = await browser.call("POST", f"/keys/{shown['key']['id']}/rotate", {"overlap_hours": 2})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:farebox:problem:conflict"), refused.text
