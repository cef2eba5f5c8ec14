"""A master and its replica, watched by a real sentinel: whoever is the master now is found."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission.store import link_to, store_from
from gateway.errors import Unavailable
from tests import services
from tests.gateway.admission.support import until
from tests.services import free_ports

WITHIN_S = 60.0


@contextlib.asynccontextmanager
async def server(*words: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        services.valkey_server(), *words, stdout=asyncio.subprocess.DEVNULL, preexec_fn=services._die_with_parent
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_master_that_dies_is_followed_by_its_replica(tmp_path: Path) -> None:
    one, two, watch = free_ports(3)
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {watch}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {one} 1\n"
        "sentinel down-after-milliseconds main 60000\nsentinel failover-timeout main 5000\n"
    )
    common = ("--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), "--repl-diskless-sync-delay", "0")
    async with (
        server("--port", str(one), *common) as first,
        server("--port", str(two), "--replicaof", f"127.0.0.1 {one}", *common),
        server(config, "--sentinel"),
        Redis(port=watch, protocol=2) as sentinel,
        Redis(port=two) as second,
    ):

        async def follows() -> bool:
            with contextlib.suppress(RedisError, OSError):
                said = await second.info("replication")
                known: Any = await sentinel.execute_command("SENTINEL", "REPLICAS", "main")
                return said["master_link_status"] == "up" and len(known) == 1
            return False

        await until(follows, WITHIN_S)
        link = link_to(store_from(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watch}/main"))
        boots: list[str] = []

        def note(boot: str) -> tuple[str, ...]:
            boots.append(boot)
            return "SET", "a", boot

        await link.call_booted(note, near="a")
        first.kill()
        await first.wait()

        async def asked() -> bool:
            with contextlib.suppress(RedisError):
                return bool(await sentinel.execute_command("SENTINEL", "FAILOVER", "main"))
            return False

        await until(asked, WITHIN_S)

        async def written() -> bool:
            with contextlib.suppress(Unavailable):
                await link.call_booted(note, near="a")
                return True
            return False

        await until(written, WITHIN_S)
        assert await second.get("a") == boots[-1].encode()
        assert boots[-1] != boots[0], "it may lack what it had not been told"
        await link.aclose()
