"""`python -m tests.conformance.admin_api`: schemathesis, by our OpenAPI document, against a whole gateway.

It asks every operation for what the document allows and for what it rules out. What counts as a fault: a 5xx, an answer
in a content type that is not documented, or one that its schema rules out. Left out: the tail, which never ends, and
signing in and out. What can take the caller's own token away comes last, before gateways of its own: schemathesis tries
the ids that it has seen, and everything after that would be a 401. A run whose token is gone at its end counts for
nothing. schemathesis lives in an environment of its own (`--venv`), made on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.db import writing
from gateway.admin.auth import people
from gateway.admin.auth.roles import Role
from gateway.admin.openapi import PATH
from tests.conformance.environments import home_of, python_of
from tests.matrix.__main__ import standing

PACKAGES = ("schemathesis==4.32.5",)
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
LEFT_OUT = "/requests/tail|/auth/"
# Apart, so that nobody knows the id of the caller where users are changed.
ENDS_ACCESS = ("/tokens|/users$", "/users/")


async def token(engine: AsyncEngine) -> str:
    """Of an owner, so that no role stands in the way."""
    now_ns = time.time_ns()
    async with writing(engine) as db:
        owner = await people.create_user(db, "schemathesis", Role.OWNER, at_ns=now_ns)
        _, secret = await people.issue_token(db, owner.id, "schemathesis", Role.OWNER, at_ns=now_ns, expires_at_ns=None)
    return secret


async def judged(python: Path, seconds: int, only: str | None) -> int:
    """All but what ends access, then that. Returns: the first exit status that is not 0."""
    if only is not None:
        return await run(python, seconds, "--include-path-regex", only, "--exclude-path-regex", LEFT_OUT)
    found = await run(python, seconds, "--exclude-path-regex", "|".join((LEFT_OUT, *ENDS_ACCESS)))
    for each in ENDS_ACCESS:
        found = found or await run(python, max(30, seconds // 5), "--include-path-regex", each, keeps_token=False)
    return found


async def run(python: Path, seconds: int, *which: str, keeps_token: bool = True) -> int:
    async with standing() as yard:
        secret = await token(yard.gateway.engine)
        authorization = f"Bearer {secret}"
        command = [
            *(str(python.with_name("schemathesis")), "run", str(PATH), "--url", yard.gateway.url, "--no-color"),
            *("-H", f"Authorization: {authorization}", "-c", CHECKS, *which),
            *("--phases", "fuzzing", "-n", "20", "--seed", "1", "--generation-deterministic"),
            *("--max-time", str(seconds)),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with tempfile.TemporaryDirectory(prefix="farebox-") as folder:  # it leaves a cache where it runs
            done = await asyncio.to_thread(
                lambda: subprocess.run(command, env=environment, cwd=folder, check=False).returncode
            )
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            url = f"{yard.gateway.url}/admin/v1/tokens"
            kept = (await http.get(url, headers={"authorization": authorization})).status_code
        if keeps_token and kept != 200:
            print(f"its token was taken away on the way ({kept}): what came after was not judged", file=sys.stderr)
            return done or 2
        return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.admin_api")
    parser.add_argument("--venv", type=Path, default=home_of("schemathesis"))
    parser.add_argument(
        "--seconds", type=int, default=300, help="how long it fuzzes; a fifth for what comes last (300)"
    )
    parser.add_argument("--only", help="a regular expression of paths")
    asked = parser.parse_args()
    sys.exit(asyncio.run(judged(python_of(asked.venv, PACKAGES), asked.seconds, asked.only)))


if __name__ == "__main__":
    main()
