"""`python -m tests.conformance.aiplatform`: google-cloud-aiplatform as judge of all that is said in Vertex' form.

Many clients ask a model on Vertex through our gateway. What the gateway then sends, what the emulator answers, and what
the gateway answers to the same requests in front of other providers, is read by Vertex' own messages, strictly: an
unknown field or word is a fault. After that the package's own clients ask the gateway over REST.

The package pins google-genai below 3, so it lives in a virtual environment of its own, made on first use in the folder
that `--venv` names and kept there; `aiplatform_judge.py` runs in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import httpx

from tests.conformance.environments import home_of, python_of
from tests.e2e.yard import UPSTREAM_KEY, Yard
from tests.emulators.server import Request
from tests.matrix.__main__ import standing
from tests.matrix.anthropic_sdks import Messages
from tests.matrix.asks import Client
from tests.matrix.aws_sdk import Converse
from tests.matrix.features import FAULTS, FEATURES, Check
from tests.matrix.google_sdk import Gemini, Interactions
from tests.matrix.openai_sdks import Chat, Responses

JUDGE = Path(__file__).with_name("aiplatform_judge.py")
PACKAGES = ("google-cloud-aiplatform==2.7.0",)
CLIENTS: tuple[type[Client], ...] = (Chat, Responses, Messages, Gemini, Interactions, Converse)
ASKED = ("vertex/gemini-2.5-flash", "vertex/gemini-3-pro-preview")
# Who else answers in Vertex' form through the gateway.
ANSWERING = (*ASKED, "anthropic/claude-sonnet-4-5", "openai/echo-1", "bedrock/amazon.nova-pro-v1:0", "gemini/echo-1")
EMBEDDERS = ("vertex/gemini-embedding-001", "vertex/text-embedding-005")
# As the package's own clients can ask for them: no slash in a model's name.
PLAIN = ("via-vertex", "via-gemini", "via-anthropic", "via-openai", "via-bedrock")
PATH = "/v1/projects/demo/locations/us-central1/publishers/google/models/{}:{}"

COUNT: Final = b'{"contents":[{"role":"user","parts":[{"text":"count me"}]}]}'

Case = dict[str, Any]


async def cases_of(yard: Yard) -> list[Case]:
    """kind: "request" or "answer"; verb: whose message; what: for whoever reads a fault."""
    backend = yard.backends["vertex"]
    asked_before = len(backend.requests)
    for client in [each(yard.gateway) for each in CLIENTS]:
        for name, check in {**FEATURES, **FAULTS}.items():
            for alias in ASKED:
                await _asked(client, name, check, alias)
        await client.aclose()
    await _embedded(yard)
    sent = [each for each in backend.requests[asked_before:] if ":" in each.path]
    cases = [_case("request", verb_of(each), f"sent to {each.path}", each.body) for each in sent]
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        for each in _distinct(sent):
            verb = verb_of(each)
            url = backend.url + each.path
            cases += await _answers(http, "emulator", url, verb, each.body, UPSTREAM_KEY)
            if verb == "predict":
                continue  # for the older embedders at Google; our clients have embedContent
            for alias in EMBEDDERS if verb == "embedContent" else ANSWERING:
                url = yard.gateway.url + PATH.format(alias, verb)
                cases += await _answers(http, alias, url, verb, each.body, yard.gateway.key)
        for alias in ANSWERING:
            url = yard.gateway.url + PATH.format(alias, "countTokens")
            cases += await _answers(http, alias, url, "countTokens", COUNT, yard.gateway.key)
        url = backend.url + PATH.format("gemini-2.5-flash", "countTokens")
        cases += await _answers(http, "emulator", url, "countTokens", COUNT, UPSTREAM_KEY)
    return cases


async def _asked(client: Client, name: str, check: Check, alias: str) -> None:
    """Whether all is well with the answer, the matrix says; here it is only made sure that it is asked."""
    try:
        await check(client, alias)
    except Exception as error:
        print(f"{client.name} | {name} | {alias}: {type(error).__name__}", file=sys.stderr)


async def _embedded(yard: Yard) -> None:
    async with httpx.AsyncClient(base_url=yard.gateway.url, timeout=60, trust_env=False) as http:
        key = {"authorization": f"Bearer {yard.gateway.key}"}
        for alias in EMBEDDERS:
            asked = {"model": alias, "input": ["one", "two"], "dimensions": 8}
            (await http.post("/v1/embeddings", json=asked, headers=key)).raise_for_status()


def verb_of(request: Request) -> str:
    return request.path.rpartition(":")[2]


def _distinct(sent: list[Request]) -> list[Request]:
    """Each once; faults that the emulator plays below HTTP have no answer to judge."""
    return list({(verb_of(each), each.body): each for each in sent}.values())


async def _answers(http: httpx.AsyncClient, who: str, url: str, verb: str, body: bytes, key: str) -> list[Case]:
    stream = verb == "streamGenerateContent"
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = await http.post(url, params={"alt": "sse"} if stream else None, content=body, headers=headers)
    what = f"{who} answers {answer.status_code} to {verb} {body[:300]!r}"
    if answer.status_code != 200:
        return [_case("answer", "error", what, answer.content)]
    if not stream:
        return [_case("answer", verb, what, answer.content)]
    frames = [frame.removeprefix("data: ") for frame in answer.text.replace("\r\n", "\n").split("\n\n") if frame]
    return [_case("answer", "error" if '"error"' in frame[:12] else verb, what, frame.encode()) for frame in frames]


def _case(kind: str, verb: str, what: str, body: bytes) -> Case:
    return {"kind": kind, "verb": verb, "what": what, "body": body.decode()}


async def judged(python: Path) -> int:
    async with standing() as yard:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for case in await cases_of(yard):
                file.write(json.dumps(case) + "\n")
            file.flush()
            told = {"FAREBOX_SUITE_URL": yard.gateway.url, "FAREBOX_SUITE_KEY": yard.gateway.key}
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | told
            command = [str(python), str(JUDGE), file.name, *PLAIN]
            return await asyncio.to_thread(lambda: subprocess.run(command, env=environment, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.aiplatform")
    parser.add_argument("--venv", type=Path, default=home_of("aiplatform"))
    sys.exit(asyncio.run(judged(python_of(parser.parse_args().venv, PACKAGES))))


if __name__ == "__main__":
    main()
