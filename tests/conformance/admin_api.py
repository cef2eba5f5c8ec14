"""`python -m tests.conformance.admin_api`: schemathesis, by our OpenAPI document, against a whole gateway.

It asks every operation for what the document allows and for what it rules out. What counts as a fault: a 5xx, an answer
in a content type that is not documented, or one that its schema rules out. Left out: the tail, which never ends, and
signing in and out. schemathesis lives in an environment of its own (`--venv`), made on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

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


async def token(engine: AsyncEngine) -> str:
    """Of an owner, so that no role stands in the way."""
    now_ns = time.time_ns()
    async with writing(engine) as db:
        owner = await people.create_user(db, "schemathesis", Role.OWNER, at_ns=now_ns)
        _, secret = await people.issue_token(db, owner.id, "schemathesis", Role.OWNER, at_ns=now_ns, expires_at_ns=None)
    return secret


async def judged(python: Path, seconds: int, only: str | None) -> int:
    async with standing() as yard:
        secret = await token(yard.gateway.engine)
        command = [
            *(str(python.with_name("schemathesis")), "run", str(PATH), "--url", yard.gateway.url, "--no-color"),
            *("-H", f"Authorization: Bearer {secret}", "--exclude-path-regex", LEFT_OUT, "-c", CHECKS),
            *("--phases", "fuzzing", "-n", "20", "--seed", "1", "--generation-deterministic"),
            *("--max-time", str(seconds)),
            *(("--include-path-regex", only) if only else ()),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return await asyncio.to_thread(lambda: subprocess.run(command, env=environment, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.admin_api")
    parser.add_argument("--venv", type=Path, default=home_of("schemathesis"))
    parser.add_argument("--seconds", type=int, default=300, help="no longer than this (300)")
    parser.add_argument("--only", help="a regular expression of paths")
    asked = parser.parse_args()
    sys.exit(asyncio.run(judged(python_of(asked.venv, PACKAGES), asked.seconds, asked.only)))


if __name__ == "__main__":
    main()
