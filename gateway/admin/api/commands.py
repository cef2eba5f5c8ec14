"""A command line that was sent here: the admin API's door for `farebox --url`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import Meta, Struct

from billing.db import writing
from gateway.admin.auth.roles import may_run
from gateway.admin.auth.routes import record
from gateway.admin.problems import Problem
from gateway.admin.services import Understood
from gateway.admin.wants import Caller, Office
from gateway.observe.redact import redact_text, redact_value

FILES_BYTES_MAX = 64 * 2**20


class CommandRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """argv: as typed, without `farebox`. files: what it reads, by the name in argv. width, color: of the terminal."""

    argv: Annotated[list[Annotated[str, Meta(max_length=4000)]], Meta(max_length=200)]
    files: dict[str, bytes] = {}
    width: Annotated[int, Meta(ge=20, le=1000)] = 80
    color: bool = False


@post("/commands", name="commands.run", status_code=200, request_max_body_size=FILES_BYTES_MAX)
async def run_command(data: JSONBody[CommandRequest], actor: Caller, services: Office) -> Stream:
    """Run a command of `farebox` here, as it would run on this machine. The answer is one JSON value a line: `out`,
    `progress`, `file` and `data`, `failed`, at last `exit`. Programs are better served by the other endpoints."""
    line = services.commands
    if line is None:
        raise Problem(404, "not-found", "this process runs no commands", "Ask a gateway started by `farebox`.")
    try:
        call = await asyncio.to_thread(line.understand, data.argv)
    except ValueError as error:
        raise Problem(422, "wrong-usage", str(error), "See `farebox --help`; this gateway may be older.") from error
    if not call.travels:
        problem = f"`farebox {call.words}` works on its own machine only"
        raise Problem(422, "wrong-usage", problem, "Run it there, without --url and FAREBOX_URL.")
    if not may_run(actor.role, call.words):
        problem = f"the role {actor.role} may not run `farebox {call.words}` on the whole installation"
        raise Problem(403, "role-not-permitted", problem, "Use a token of an owner or admin.")
    if call.changes:
        async with writing(services.engine) as db:
            await record(db, actor, "commands.run", call.words, services.clock(), after=_told(call))
    lines = line.run(call, services.engine, services.keys, actor.name, data.files, data.width, data.color)
    return Stream(lines, media_type="application/x-ndjson")


command_handlers: list[HTTPRouteHandler] = [run_command]


def _told(call: Understood) -> dict[str, Any]:
    """Its arguments as the audit log may keep them."""
    plain = msgspec.to_builtins(call.said(), enc_hook=str, str_keys=True)
    return {name: redact_value(name, redact_text(each) if isinstance(each, str) else each)
            for name, each in plain.items()}  # fmt: skip
