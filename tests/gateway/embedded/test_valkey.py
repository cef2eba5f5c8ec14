"""The embedded Valkey: a real one, killed in every way that happens."""

import asyncio
import json
import os
import signal
import stat
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.embedded.process import LEASH, StartFailed
from gateway.embedded.valkey import SUN_PATH_MAX, EmbeddedValkey, answers, find_binary, server_version, socket_path

# A parent that starts a Valkey, says where it is, and waits to be killed.
PARENT = """
import asyncio, json, sys
from pathlib import Path
from gateway.embedded.valkey import EmbeddedValkey

async def main():
    server = EmbeddedValkey(Path(sys.argv[1]))
    await server.start()
    print(json.dumps({"url": server.url, "pid": server.supervisor.pid}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def parent(data: Path) -> tuple[Process, str, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(data), stdout=PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert process.stdout is not None
    said = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    return process, said["url"], said["pid"]


async def gone(pid: int) -> None:
    """Wait until the process has ended; a zombie has."""
    async with asyncio.timeout(10):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return
            if state == "Z":
                return
            await asyncio.sleep(0.01)


async def test_it_serves_on_a_socket_of_its_own_and_stops_clean(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    await server.start()
    path = Path(server.url.removeprefix("unix://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    async with Redis.from_url(server.url) as redis:
        assert await redis.set("a", "1")
        assert (await redis.config_get("appendonly"))["appendonly"] == "yes"
        assert (await redis.config_get("port"))["port"] == "0"
        assert (await redis.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
    pid = server.supervisor.pid
    assert pid is not None
    await server.stop()
    await gone(pid)
    assert not path.exists()
    assert not await answers(path)


async def test_what_was_written_is_there_after_a_clean_restart(tmp_path: Path) -> None:
    for value in (1, 2):
        server = EmbeddedValkey(tmp_path)
        await server.start()
        async with Redis.from_url(server.url) as redis:
            assert await redis.incr("count") == value
        await server.stop()


async def test_a_crashed_server_is_started_again_on_the_same_socket(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path, backoff_s=0.0)
    await server.start()
    try:
        async with Redis.from_url(server.url) as redis:
            await redis.set("a", "kept")
            # What has left the server's own buffer survives its death; the fsync is only for the machine's.
            await redis.execute_command("WAITAOF", 1, 0, 5000)
        pid, url = server.supervisor.pid, server.url
        assert pid is not None
        server.supervisor.healthy.clear()
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            await server.supervisor.healthy.wait()
        assert server.supervisor.pid != pid
        assert server.url == url
        async with Redis.from_url(url) as redis:
            assert await redis.get("a") == b"kept"
    finally:
        await server.stop()


async def test_kill_9_of_the_parent_takes_the_server_along_and_loses_nothing(tmp_path: Path) -> None:
    process, url, pid = await parent(tmp_path)
    async with Redis.from_url(url) as redis:
        await redis.set("a", "kept")
    process.kill()
    await process.wait()
    # The next start waits for the old server by itself: two never write one AOF.
    server = EmbeddedValkey(tmp_path)
    await server.start()
    try:
        await gone(pid)
        async with Redis.from_url(server.url) as redis:
            assert await redis.get("a") == b"kept"
    finally:
        await server.stop()


async def test_where_the_kernel_ties_no_children_a_leash_does() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
    leash = await asyncio.create_subprocess_exec(sys.executable, str(LEASH), str(child.pid), stdin=PIPE)
    assert child.returncode is None
    assert leash.stdin is not None
    leash.stdin.close()  # As the kernel does when we die.
    async with asyncio.timeout(10):
        assert await child.wait() == -signal.SIGTERM
        assert await leash.wait() == 0


async def test_a_long_folder_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    assert len(os.fsencode(deep)) > SUN_PATH_MAX
    server = EmbeddedValkey(deep)
    await server.start()
    path = Path(server.url.removeprefix("unix://"))
    try:
        assert not path.is_relative_to(tmp_path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert await answers(path)
    finally:
        await server.stop()
    assert not path.parent.exists()
    short = Path("/d")
    assert socket_path(short) == short / "run" / "valkey.sock"


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("this is no manifest\n")
    server = EmbeddedValkey(tmp_path)
    with pytest.raises(StartFailed, match=r"valkey\.log"):
        await server.start()
    assert server.supervisor.pid is None
    await server.stop()


def test_the_binary_is_found_and_knows_its_version() -> None:
    binary = find_binary()
    assert binary is not None
    assert server_version(binary).split()[0] in ("valkey", "redis")
