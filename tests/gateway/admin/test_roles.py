"""Role x endpoint, written out: a change of the table in auth/roles.py has to be said here too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from litestar import Litestar

from gateway.admin.auth.roles import OPEN, PERMITTED, Role, may_hand_out, uncovered
from gateway.admin.routes import HANDLERS, admin_routes
from gateway.admin.services import Services
from gateway.errors import Unavailable
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World

ALL = "owner admin finance team_lead developer viewer"
SELF = f"{ALL} member"
MAKERS, TELLERS, ADMINS = "owner admin team_lead developer", "owner admin finance", "owner admin"
BOUNDERS, LEADS = "owner admin finance team_lead", "owner admin team_lead"

# method, path, body, who may. Bodies are such that nothing changes: what is permitted ends in 404 or 422 at worst.
MATRIX = [
    ("DELETE", "/auth/session", None, SELF),
    ("PUT", "/auth/password", {"password": "short"}, SELF),
    ("GET", "/auth/passkeys", None, SELF),
    ("POST", "/auth/passkeys/options", None, SELF),
    ("POST", "/auth/passkeys", {"name": "n"}, SELF),
    ("DELETE", "/auth/passkeys/none", None, SELF),
    ("GET", "/overview", None, ALL),
    ("GET", "/usage", None, ALL),
    ("GET", "/usage.csv", None, ALL),
    ("GET", "/usage.parquet", None, ALL),
    ("GET", "/savings", None, ALL),
    ("GET", "/requests", None, ALL),
    ("GET", "/requests/req_none", None, ALL),
    ("GET", "/requests/tail?seconds=0", None, ALL),
    ("GET", "/keys", None, ALL),
    ("GET", "/keys/none", None, ALL),
    ("POST", "/keys", {"project_id": "none", "name": "k"}, MAKERS),
    ("PATCH", "/keys/none", {"name": "k"}, MAKERS),
    ("DELETE", "/keys/none", None, MAKERS),
    ("POST", "/keys/none/rotate", {}, MAKERS),
    ("GET", "/losses/key/none", None, ALL),
    ("PUT", "/losses/project/none", {"mode": "strict"}, MAKERS),
    ("POST", "/playground/key", {"project_id": "none"}, MAKERS),
    ("GET", "/projects", None, ALL),
    ("POST", "/projects", {"name": "P", "organisation_id": "none"}, ADMINS),
    ("PUT", "/projects/none/team", {"team_id": None}, ADMINS),
    ("GET", "/projects/none/routing", None, ALL),
    ("PUT", "/projects/none/routing", {"second_usd": "0.01"}, LEADS),
    ("GET", "/organisations", None, ALL),
    ("POST", "/organisations", {"name": ""}, ADMINS),
    ("GET", "/teams", None, ALL),
    ("POST", "/teams", {"name": "T", "organisation_id": "none"}, ADMINS),
    ("GET", "/members", None, ALL),
    ("POST", "/members/project/none", {"name": "n", "role": "viewer"}, LEADS),
    ("PUT", "/members/project/none/none", {"role": "viewer"}, LEADS),
    ("DELETE", "/members/project/none/none", None, LEADS),
    ("GET", "/budgets", None, ALL),
    ("GET", "/budgets/key/none/total/forecast", None, ALL),
    ("PUT", "/budgets/key/none/total", {"limit_usd": "1"}, BOUNDERS),
    ("POST", "/budgets/key/none/total/raise", {"raise_usd": "1", "until": "2027-01-01T00:00:00Z"}, BOUNDERS),
    ("DELETE", "/budgets/key/none/total", None, BOUNDERS),
    ("GET", "/models", None, ALL),
    ("GET", "/providers", None, ALL),
    ("GET", "/provider-kinds", None, ADMINS),
    ("GET", "/providers/none", None, ADMINS),
    ("PUT", "/providers/none", {"kind": "none"}, ADMINS),
    ("DELETE", "/providers/none", None, ADMINS),
    ("POST", "/providers/none/test", {}, ADMINS),
    ("POST", "/provider-tests", {"kind": "none"}, ADMINS),
    ("GET", "/providers/none/models", None, ADMINS),
    ("GET", "/credentials", None, ADMINS),
    ("PUT", "/credentials/none", {"kind": "openai", "fields": {}}, ADMINS),
    ("DELETE", "/credentials/none", None, ADMINS),
    ("GET", "/deployments", None, ADMINS),
    ("PUT", "/deployments/none", {"provider": "none", "model": "m"}, ADMINS),
    ("DELETE", "/deployments/none", None, ADMINS),
    ("GET", "/aliases", None, ADMINS),
    ("PUT", "/aliases/none", {"targets": [{"deployment": "none"}]}, ADMINS),
    ("DELETE", "/aliases/none", None, ADMINS),
    ("POST", "/route/preview", {"alias": "none"}, ADMINS),
    ("GET", "/catalogue", None, ADMINS),
    ("POST", "/catalogue/restore", {"number": 1}, ADMINS),
    ("GET", "/prices?provider=p&model=m", None, ALL),
    ("POST", "/prices", {"provider": "p", "model": "m", "sale": {}}, TELLERS),
    ("GET", "/ledger/balances", None, TELLERS),
    ("GET", "/ledger/transfers", None, TELLERS),
    ("GET", "/ledger/audit", None, TELLERS),
    ("POST", "/ledger/top-ups", {"organisation_id": "none", "amount_usd": "1", "note": "n"}, TELLERS),
    ("POST", "/ledger/refunds", {"request_id": "none", "note": "n"}, TELLERS),
    ("GET", "/invoices", None, TELLERS),
    ("GET", "/invoices/none/2026-11", None, TELLERS),
    ("GET", "/invoices/none/2026-11/pdf", None, TELLERS),
    ("GET", "/invoices/none/2026-11/csv", None, TELLERS),
    ("POST", "/prices/compare", {"list": "{}"}, TELLERS),
    ("POST", "/prices/import", {"list": "{}", "name": "n"}, TELLERS),
    ("POST", "/reconcile", {"provider": "p", "bill": "{}"}, TELLERS),
    ("GET", "/alerts", None, TELLERS),
    ("POST", "/alerts", {"kind": "budget", "threshold": "x", "channel": "email", "target": "a@b.c"}, TELLERS),
    ("DELETE", "/alerts/none", None, TELLERS),
    ("POST", "/alerts/none/test", None, TELLERS),
    ("GET", "/alerts/deliveries", None, TELLERS),
    ("GET", "/guardrails", None, ALL),
    ("POST", "/guardrails", {"name": "n", "spec": {"kind": "none"}}, ADMINS),
    ("PUT", "/guardrails/none", {"name": "n", "spec": {"kind": "none"}}, ADMINS),
    ("DELETE", "/guardrails/none", None, ADMINS),
    ("POST", "/guardrails/test", {"text": "t", "guardrail": {"name": "n", "spec": {"kind": "none"}}}, ADMINS),
    ("GET", "/guardrails/reports", None, ADMINS),
    ("GET", "/bodies/projects", None, ADMINS),
    ("PUT", "/bodies/projects/none", {"days": 1}, ADMINS),
    ("DELETE", "/bodies/projects/none", None, ADMINS),
    ("GET", "/requests/none/bodies", None, ADMINS),
    ("GET", "/engine", None, ALL),
    ("GET", "/engines", None, ALL),
    ("GET", "/audit", None, ADMINS),
    ("GET", "/audit/export?actor=none", None, ADMINS),
    ("GET", "/audit/verify", None, ADMINS),
    ("GET", "/users", None, ADMINS),
    ("POST", "/users", {"name": "", "role": "viewer"}, ADMINS),
    ("PATCH", "/users/none", {"role": "viewer"}, ADMINS),
    ("POST", "/users/none/link", None, ADMINS),
    ("GET", "/tokens", None, MAKERS),
    ("POST", "/tokens", {"name": "", "role": "viewer"}, MAKERS),
    ("DELETE", "/tokens/none", None, MAKERS),
    ("GET", "/settings", None, ADMINS),
    ("GET", "/provisioning", None, ADMINS),
    ("POST", "/scim-tokens", {"name": ""}, ADMINS),
    ("DELETE", "/scim-tokens/none", None, ADMINS),
    ("POST", "/commands", {"argv": ["up"]}, ALL),
]


@pytest.fixture
async def browsers(small: World) -> AsyncIterator[dict[Role, Browser]]:
    found = {}
    for role in Role:
        found[role] = Browser(small.app())
        await found[role].sign_in(await small.link(role))
    yield found
    for each in found.values():
        await each.aclose()


async def test_every_role_may_call_what_the_matrix_says_and_nothing_else(browsers: dict[Role, Browser]) -> None:
    headers = {"idempotency-key": "matrix-0001"}
    wrong = []
    # Signing out last: the session is needed until then.
    for method, path, body, who in sorted(MATRIX, key=lambda line: line[1] == "/auth/session"):
        for role, browser in browsers.items():
            answer = await browser.call(method, path, body, **headers)
            permitted = not (answer.status_code == 403 and answer.json()["type"].endswith("role-not-permitted"))
            if (
                permitted != (role.value in who.split())
                or answer.status_code in (401, 405)
                or answer.status_code >= 500
            ):
                wrong.append((role.value, method, path, answer.status_code))
    assert not wrong


async def test_nobody_gets_anything_but_the_way_in(small: World) -> None:
    async with Browser(small.app()) as stranger:
        for method, path, body, _ in MATRIX:
            assert (await stranger.call(method, path, body)).status_code == 401, path


def test_the_matrix_has_every_endpoint() -> None:
    paths = {(method, path.partition("?")[0].replace("none", "*").replace("req_*", "*")) for method, path, *_ in MATRIX}
    assert len(paths) == len(MATRIX) == len(PERMITTED)
    assert len(HANDLERS) == len(PERMITTED) + len(OPEN)


def test_an_endpoint_without_a_line_in_the_table_stops_the_start() -> None:
    assert uncovered(["keys.list", "keys.frob", "session.by_link"]) == ["keys.frob"]


@pytest.mark.parametrize(
    ("own", "other", "may"),
    [
        ("owner", "owner", True),
        ("owner", "admin", True),
        ("admin", "owner", False),
        ("admin", "admin", True),
        ("admin", "finance", True),
        ("developer", "finance", False),
        ("developer", "viewer", True),
        ("viewer", "developer", False),
        ("team_lead", "developer", True),
        ("team_lead", "finance", False),
        ("admin", "team_lead", True),
        ("developer", "team_lead", False),
        ("viewer", "member", True),
        ("member", "viewer", False),
    ],
)
def test_nobody_hands_out_more_than_they_hold(own: str, other: str, may: bool) -> None:
    assert may_hand_out(Role(own), Role(other)) is may


async def test_services_are_asked_for_at_each_request_even_by_a_method(small: World) -> None:
    """Litestar copies deeply what it is given: a bound method would answer for a copy of its object."""

    class Root:
        ready = False

        def office(self) -> Services:
            if not self.ready:
                raise Unavailable("the gateway is starting")
            return small.services

    root = Root()
    async with Browser(Litestar(admin_routes(root.office), openapi_config=None, logging_config=None)) as browser:
        early = await browser.call("GET", "/auth/session")
        assert (early.status_code, early.json()["type"]) == (503, "urn:farebox:problem:unavailable")
        root.ready = True
        assert (await browser.call("GET", "/auth/session")).status_code == 200
