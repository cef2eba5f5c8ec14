"""Bodies are logged for projects that ask for it, redacted and sealed, and for nobody else; reading leaves a trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import delete, func, insert, select, update

from billing.db import reading, writing
from gateway import audit, schema
from gateway.bodies.recorder import MOST_BYTES
from gateway.bodies.store import Bodies, forget_bodies
from gateway.envelope import CannotOpen
from gateway.errors import InvalidRequest, NotFound
from gateway.guardrails.detectors import NAMES
from gateway.kept import key_ring
from gateway.observe.metrics import METRICS
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_guardrails import CARD, DIALECTS, said
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    data = tmp_path_factory.mktemp("bodies")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as openai:
        providers = {"openais": provider("openai", f"{openai.url}/v1")}
        settings = settings_for(data, f"sqlite:///{database}", _valkey, providers, (model("gpt", "openais/echo-1"),))
        async with house(settings) as built:
            yield built


async def logged(gateway: House, request_id: str) -> dict[str, Any]:
    bodies = Bodies(gateway.engine, gateway.keys.changed)
    async with asyncio.timeout(30):
        while True:
            try:
                return await bodies.read(request_id, key_ring(gateway.settings), actor="reader", now_ns=time.time_ns())
            except NotFound:
                await asyncio.sleep(0.01)


async def test_only_a_project_that_asks_has_its_bodies_logged(gateway: House) -> None:
    bodies = Bodies(gateway.engine, gateway.keys.changed)
    prompt = f"x-script: say=card_{CARD}_here\nI am a.b@c.example"
    _, before = await said(gateway, await gateway.new_key(), "openai_chat", "gpt", prompt, stream=False)
    with pytest.raises(InvalidRequest):
        await bodies.set(gateway.project.id, 0, NAMES, actor="test", now_ns=time.time_ns())
    with pytest.raises(InvalidRequest):
        await bodies.set(gateway.project.id, 1, ("shoe",), actor="test", now_ns=time.time_ns())
    await bodies.set(gateway.project.id, 7, NAMES, actor="test", now_ns=time.time_ns())
    key = await gateway.new_key()
    for dialect in DIALECTS:
        for stream in (True, False):
            response, answer = await said(gateway, key, dialect, "gpt", prompt, stream=stream)
            assert "4111 1111" in str(response)  # What a client gets is a guardrail's to change.
            kept = await logged(gateway, answer.headers["x-request-id"])
            assert "[EMAIL]" in str(kept["request"]), dialect
            assert "card [CARD] here" in str(kept["response"]), (dialect, kept)
            assert "1111" not in str(kept["response"])
            assert "a.b@c.example" not in str(kept)
    async with reading(gateway.engine) as db:
        rows = (await db.execute(select(schema.body_logs))).all()
        trace = (await db.execute(select(schema.audit).order_by(schema.audit.c.id.desc()))).first()
        assert (await audit.verify(db)).broken_at is None
    assert {row.request_id for row in rows}.isdisjoint({before.headers["x-request-id"]})
    assert trace is not None
    assert (trace.actor, trace.action) == ("reader", "bodies.read")
    assert all(b"card" not in row.ciphertext for row in rows)


async def test_what_was_moved_to_another_row_does_not_open_and_time_ends_all(gateway: House) -> None:
    bodies = Bodies(gateway.engine, gateway.keys.changed)
    await bodies.set(gateway.project.id, 7, NAMES, actor="test", now_ns=time.time_ns())
    _, answer = await said(gateway, await gateway.new_key(), "openai_chat", "gpt", "hi", stream=False)
    ident = answer.headers["x-request-id"]
    await logged(gateway, ident)
    async with writing(gateway.engine) as db:
        await db.execute(
            update(schema.body_logs).where(schema.body_logs.c.request_id == ident).values(request_id="moved")
        )
    with pytest.raises(CannotOpen):
        await bodies.read("moved", key_ring(gateway.settings), actor="x", now_ns=time.time_ns())
    assert await forget_bodies(gateway.engine, now_ns=time.time_ns()) == 0
    assert await forget_bodies(gateway.engine, now_ns=time.time_ns() + 8 * 24 * 3600 * 10**9) >= 1
    async with reading(gateway.engine) as db:
        assert (await db.execute(select(func.count()).select_from(schema.body_logs))).scalar_one() == 0


async def test_what_a_tenant_said_opens_with_its_own_salt_alone(gateway: House) -> None:
    bodies = Bodies(gateway.engine, gateway.keys.changed)
    await bodies.set(gateway.project.id, 7, NAMES, actor="test", now_ns=time.time_ns())
    await bodies.set(gateway.project.id, 8, NAMES, actor="test", now_ns=time.time_ns())
    _, answer = await said(gateway, await gateway.new_key(), "openai_chat", "gpt", "hi", stream=False)
    ident = answer.headers["x-request-id"]
    await logged(gateway, ident)
    salts = schema.tenant_salts
    async with writing(gateway.engine) as db:
        kept = (await db.execute(select(salts))).mappings().one()
        await db.execute(delete(salts))
    assert kept["organisation_id"] == gateway.project.organisation_id
    with pytest.raises(CannotOpen, match="salt"):
        await bodies.read(ident, key_ring(gateway.settings), actor="x", now_ns=time.time_ns())
    async with writing(gateway.engine) as db:
        await db.execute(insert(salts).values(kept))
    await logged(gateway, ident)


async def test_a_body_too_large_is_lost_and_counted_and_holds_nobody_up(gateway: House) -> None:
    bodies = Bodies(gateway.engine, gateway.keys.changed)
    await bodies.set(gateway.project.id, 7, NAMES, actor="test", now_ns=time.time_ns())
    key = await gateway.new_key()

    def lost() -> bool:
        return b'farebox_notes_lost_total{kind="body"}' in METRICS.exposition()

    assert not lost()
    _, answer = await said(gateway, key, "openai_chat", "gpt", "word " * (MOST_BYTES // 4), stream=False)
    assert answer.status_code == 200
    assert lost()
