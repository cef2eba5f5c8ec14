"""deploy/terraform, by hand: what its resources send is taken by the admin API."""

from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World


async def test_what_terraform_would_send_is_taken_and_found_again(browser: Browser, made: World) -> None:
    """Create, search in the list, change, remove: the four steps of each resource, against the admin API."""
    project = (await browser.call("POST", "/projects", {"name": "docs"})).json()
    assert project["id"] in {each["id"] for each in (await browser.call("GET", "/projects")).json()}
    terms = {"name": "docs (terraform)", "models": None, "rpm": None}
    key = (await browser.call("POST", "/keys", {"project_id": project["id"], **terms})).json()
    assert key["secret"].startswith("fbx-")
    read = (await browser.call("GET", f"/keys/{key['key']['id']}")).json()
    assert read["name"] == "docs (terraform)"
    changed = await browser.call("PATCH", f"/keys/{key['key']['id']}", {**terms, "rpm": 5})
    assert changed.json()["rpm"] == 5
    budget = f"/budgets/project/{project['id']}/month"
    for limit in ("20", "30"):
        assert (await browser.call("PUT", budget, {"limit_usd": limit})).status_code == 200
    found = {each["scope_id"]: each for each in (await browser.call("GET", "/budgets")).json()}
    assert found[project["id"]]["limit_usd"] == "30.00"
    assert (await browser.call("DELETE", budget)).status_code == 204
    assert (await browser.call("DELETE", f"/keys/{key['key']['id']}")).status_code == 200
