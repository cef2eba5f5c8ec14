"""A real server in cluster mode, which refuses a script whose keys lie in different slots."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.admission.limits import Scopes, scopes_of
from gateway.admission.principal import Budget, Facts, Limit
from gateway.errors import QuotaExceeded
from tests import services
from tests.gateway.admission.support import NOW_MS, evict_budgets, limiter, principal

FACTS = Facts("gpt-4o", ("openai",), ("night",), "ann {x}")
LIMITS = (
    Limit("key", "key_1", "requests", 9),
    Limit("team", "team_1", "tokens", 9_000),
    Limit("end_user", "prj_1", "parallel", 9),
    Limit("model", "org_1/gpt-*", "tokens", 9_000, 3_600_000),
    Limit("provider", "org_1/openai", "requests", 9),
    Limit("tag", "prj_1/night", "requests", 9, 86_400_000),
)
BUDGETS = (
    Budget("key", "key_1", 1_000),
    Budget("organisation", "org_1", 1_000, "month"),
    Budget("end_user", "prj_1", 1_000, "hour"),
    Budget("model", "org_1/gpt-*", 1_000, "day", "soft"),
    Budget("tag", "prj_1/night", 1_000, "day", "throttle", 5, 50),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Redis]:
    path = tmp_path / "c.sock"
    [bus] = services.free_ports(1)
    process = await asyncio.create_subprocess_exec(
        services.valkey_server(), "--port", "0", "--unixsocket", str(path), "--cluster-enabled", "yes",
        "--cluster-port", str(bus), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", "",
        stdout=asyncio.subprocess.DEVNULL, preexec_fn=services._die_with_parent,
    )  # fmt: skip
    try:
        async with Redis.from_url(f"unix://{path}") as client:
            async with asyncio.timeout(services.START_TIMEOUT_S):
                while not path.exists() or not await is_up(client):
                    assert process.returncode is None, "Valkey did not start"
                    await asyncio.sleep(0.02)
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                while b"cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO"):
                    await asyncio.sleep(0.02)
            yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def is_up(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False


async def test_every_script_runs_in_one_slot(cluster: Redis) -> None:
    who = principal(*LIMITS, budgets=BUDGETS)
    where = scopes_of(who, FACTS, NOW_MS)
    assert len(where.keys) == len(LIMITS) + len(BUDGETS)

    async def both(_: Scopes) -> Sequence[str]:
        for each in (limits, other):
            token, there = await each.called(where)
            assert there or await each.present(where, token)
        return "one", "two"

    async with limiter(cluster, owner="one", assemble=both) as limits, limiter(cluster, owner="two") as other:
        await limits.reserve("a", where, tokens=10, hold_pusd=300)
        await limits.renew("a", where, tokens=10, hold_pusd=300)
        await limits.settle("a", where, tokens=5, charge_pusd=200, provider="openai")
        await other.reserve("b", where, tokens=10, hold_pusd=300, lease_ms=-1)
        assert [name for name, _, _ in await limits.expired("org_1")] == ["b"]
        assert await limits.correct("org_1", {"b": 100}) == 1
        assert await limits.available_pusd(where) == (700,) * len(BUDGETS)
        with pytest.raises(QuotaExceeded):
            await limits.reserve("c", where, tokens=10, hold_pusd=900)
        await evict_budgets(cluster, where)
        await limits.reserve("d", where, tokens=10, hold_pusd=300)
    for key in await cluster.keys():
        assert await cluster.execute_command("CLUSTER", "KEYSLOT", key) == await cluster.execute_command(
            "CLUSTER", "KEYSLOT", "{org_1}"
        ), key


async def test_the_server_would_have_refused_two_slots(cluster: Redis) -> None:
    with pytest.raises(ResponseError, match="slot"):
        await cluster.execute_command("EVAL", "return 1", 2, "{a}", "{b}")
