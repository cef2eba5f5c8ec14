"""Alert rules through the admin API, and the test message that shows whether anybody would hear them."""

from __future__ import annotations

from msgspec.structs import replace

from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World
from tests.gateway.test_alerting import Ear


async def test_a_rule_is_made_tried_and_removed(small: World) -> None:
    async with Ear() as ear, Browser(small.app()) as browser:
        await browser.sign_in(await small.link())
        asked = {"kind": "budget", "threshold": "80", "channel": "webhook", "target": ear.url}
        rule = await browser.send("POST", "/alerts", asked)
        assert (rule["threshold"], (await browser.get("/alerts"))[0]["id"]) == ("80.00", rule["id"])
        # A host inside our own network is not to be reached unless the operator says so.
        refused = await browser.send("POST", f"/alerts/{rule['id']}/test")
        assert not refused["delivered"]
        assert "inside this network" in refused["problem"]
        assert not ear.requests
        settings = small.services.settings
        object.__setattr__(
            small.services, "settings", replace(settings, alerts=replace(settings.alerts, private_targets=True))
        )
        assert await browser.send("POST", f"/alerts/{rule['id']}/test") == {"delivered": True, "problem": None}
        assert len(ear.requests) == 1
        assert (await browser.get("/audit", limit=1))["items"][0]["action"] == "alerts.test"
        await browser.send("DELETE", f"/alerts/{rule['id']}")
        assert await browser.get("/alerts") == []
        assert (await browser.call("POST", f"/alerts/{rule['id']}/test")).status_code == 404
