"""Engines under Ray Serve on this machine, by Ray's proxy and, since they join a gateway by lease, by the gateway:
answers, streams, a second engine when tokens wait, one less afterwards, and nobody's request lost when it leaves.

Run by an interpreter that has `ray[serve]`; the engine itself is started by another one, which has `farebox[local]`:

    FAREBOX_ENGINE_REGISTER_TOKEN=... python tests/deploy/ray_engines.py MODEL_FOLDER ENGINE_PYTHON GATEWAY KEY PROVIDER

Prints one JSON line of what was seen; exits 1 where that is not what it should be."""

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import ray
from ray import serve

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deploy.ray.engines import Wanted, build  # noqa: E402 - where it is, is known only now

WITHIN_S = 600.0
TRIES = 3
NAME = "engines"
CLIENTS = 6


def running() -> int:
    replicas = serve.status().applications[NAME].deployments["Engine"].replica_states
    return int(replicas.get("RUNNING", 0))


async def until(count: int) -> float:
    """Seconds until so many replicas run. Raises: TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(WITHIN_S):
        while await asyncio.to_thread(running) != count:
            await asyncio.sleep(0.2)
    return round(time.monotonic() - began, 1)


async def completion(http: aiohttp.ClientSession, url: str, prompt: str, tokens: int) -> tuple[int, dict]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with http.post(f"{url}/v1/completions", json=body) as answer:
        return answer.status, await answer.json()


class Gateway:
    """Which the engines join. Its alias is called like their provider."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str, alias: str) -> None:
        self._post = http.post
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"}
        self._alias = alias

    async def ask(self, prompt: str, tokens: int = 2) -> str:
        """The status, and how many engines were asked."""
        async with self._post(self._url, json=self._body(prompt, tokens), headers=self._headers) as answer:
            await answer.read()
            return f"{answer.status}, {answer.headers.get('x-farebox-attempts')}"

    async def engines(self) -> int:
        dry = self._headers | {"x-farebox-dry-run": "1"}
        async with self._post(self._url, json=self._body("hello", 1), headers=dry) as answer:
            return len((await answer.json())["legs"]) if answer.status == 200 else 0

    async def until(self, count: int) -> None:
        """Raises: TimeoutError."""
        async with asyncio.timeout(WITHIN_S):
            while await self.engines() != count:
                await asyncio.sleep(0.2)

    def _body(self, prompt: str, tokens: int) -> dict:
        return {"model": self._alias, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}


async def seen(url: str, at: str, key: str, alias: str) -> dict:
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        gateway = Gateway(http, at, key, alias)
        first, said = await completion(http, url, "hello", 8)
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        body["stream"] = True
        async with http.post(f"{url}/v1/completions", json=body) as answer:
            lines = [line async for line in answer.content if line.startswith(b"data: {")]
        streamed = "".join(choice["text"] for line in lines for choice in json.loads(line[6:])["choices"])
        missing, _ = await completion(http, url, "x" * 50_000, 1)
        began_with = await asyncio.to_thread(running)
        await gateway.until(1)
        # Prompts that share nothing, one after the other from each client, until there is help.
        answered: list[str] = []
        helped, gone = asyncio.Event(), asyncio.Event()

        async def client(number: int) -> None:
            while not helped.is_set():
                answered.append(await gateway.ask(f"{number} {len(answered)} " * 800))

        async def caller() -> None:
            while not gone.is_set():
                answered.append(await gateway.ask("hello"))

        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(number))
            up_s = await until(2)
            await gateway.until(2)
            helped.set()
        async with asyncio.TaskGroup() as clients:
            clients.create_task(caller())
            down_s = await until(1)
            await gateway.until(1)
            gone.set()
        last, _ = await completion(http, url, "hello", 8)
    return {
        "status": first,
        "same_streamed": streamed == said["choices"][0]["text"],
        "chunks": len(lines),
        "too_long": missing,
        "began_with": began_with,
        "up_s": up_s,
        "asked": {told: answered.count(told) for told in set(answered)},
        "down_s": down_s,
        "after": last,
    }


@contextmanager
def cluster() -> Iterator[None]:
    """One node, on which its own raylet may give up: it waits 15 s for agents, which take longer on a busy machine."""
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray's workers import the application, and start the engine, from here.
    os.environ["PYTHONPATH"] = str(ROOT)
    for left in reversed(range(TRIES)):
        try:
            ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
            break
        except Exception as error:  # Ray says it with a bare Exception
            if not left:
                raise
            print(f"Ray did not start ({error}); again", file=sys.stderr)
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def main(folder: str, python: str, gateway: str, key: str, provider: str) -> int:
    with cluster():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        wanted = Wanted(
            model=folder,
            python=python,
            engine="--served-name tiny --dtype float32 --kv-cache-bytes 24MiB --threads 1 --token-budget 256",
            min_replicas=1,
            max_replicas=2,
            tokens_per_replica=2000,
            up_s=0.5,
            down_s=1.0,
            join=gateway,
            join_as=provider,
        )
        serve.run(build(wanted), name=NAME)
        found = asyncio.run(seen(f"http://127.0.0.1:{port}", gateway, key, provider))
    print(json.dumps(found))
    right = (
        found["status"] == found["after"] == 200
        and found["same_streamed"]
        and found["too_long"] == 400
        and set(found["asked"]) == {"200, 1"}
        and found["began_with"] == 1
    )
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
