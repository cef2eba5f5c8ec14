"""The catalogue in SQL: changed whole, looked at whole, refused whole; its credentials sealed row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.db import create_engine, reading, writing
from billing.pricelist import load_prices
from billing.usage import Meter
from gateway import audit
from gateway.catalogue.changes import Changes, Outdated, Refused, Sealing
from gateway.catalogue.document import AliasEntry, DeploymentEntry, Document, ProviderEntry, etag
from gateway.catalogue.store import StoredField
from gateway.config import Settings, load
from gateway.envelope import CannotOpen
from gateway.errors import NotFound
from gateway.kept import key_ring, rotate_kept_ring
from gateway.routing.offer import Offer
from gateway.routing.provider_set import endpoints_from
from gateway.schema import audit as audit_table
from gateway.schema import provider_credentials as rows

SECRET = "sk-proj-a-long-secret-value-9f3c"
AWS = {"access_key_id": "AKIAABCDEFGHIJKLMNOP", "secret_access_key": "wJalr-a-secret-of-forty-characters-XYZ1"}
NOW = 10**18


class Room:
    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.environ = {"ONE_KEY": "from-the-environment", "FAREBOX_KEY_PEPPER": "ours"}
        self.changes = Changes(engine, lambda: self.settings, lambda: key_ring(settings), self.environ)

    async def put(self, kind: Any, name: str, said: dict[str, Any], **more: Any) -> int:
        entry = {"providers": ProviderEntry, "deployments": DeploymentEntry, "aliases": AliasEntry}[kind]
        version = await self.changes.put(kind, name, msgspec.convert(said, entry), actor="ann", now_ns=NOW, **more)
        return version.number

    async def keep(self, name: str, fields: dict[str, str], kind: str = "openai_like") -> None:
        await self.changes.keep(Sealing(name, kind, fields), actor="ann", now_ns=NOW)


@pytest.fixture
async def room(fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    file = tmp_path / "farebox.toml"
    file.write_text("""
        [providers.house]
        kind = "openai_like"
        base_url = "http://h/v1"
        [[models]]
        alias = "from-file"
        deployments = [{ provider = "house", model = "m" }]
    """)
    settings = load(file, {}, {"data_dir": tmp_path, "database_url": fresh_database_url, "local.enabled": False})
    engine = create_engine(fresh_database_url)
    yield Room(engine, settings)
    await engine.dispose()


LIKE = {"kind": "openai_like", "base_url": "http://127.0.0.1:9/v1", "allow_private": True}


async def test_a_provider_its_credential_a_model_and_an_alias_are_on_offer(room: Room) -> None:
    offer = Offer(room.engine, room.settings)
    await offer.load()
    sealing = Sealing("east", "bedrock", AWS)
    bedrock = {
        "kind": "bedrock",
        "region": "us-east-1",
        "credential": "east",
        **{k: LIKE[k] for k in LIKE if k != "kind"},
    }
    assert await room.put("providers", "east", bedrock, sealing=sealing) == 1
    price = {"input": "1.5", "output": "7.25"}
    place = {"provider": "east", "model": "amazon.nova", "price": price, "residency": "eu", "capabilities": ["tools"]}
    await room.put("deployments", "nova", place)
    targets = [{"deployment": "nova", "weight": 3}, {"deployment": "house/m2", "priority": 1}]
    await room.put("aliases", "fast", {"targets": targets, "strategy": "lowest_cost", "fallbacks": ["from-file"]})
    await offer.load()
    nova, spare, last = offer.catalog.deployments("fast")
    assert (nova.id, nova.kind, nova.weight, nova.residency, nova.features) == (
        "east/amazon.nova", "bedrock", 3, "eu", frozenset({"tools"}),
    )  # fmt: skip
    assert (spare.id, spare.priority) == ("house/m2", 1)
    assert (last.id, last.priority) == ("house/m", 2)
    assert offer.catalog.terms_of("fast").strategy == "lowest_cost"
    assert offer.price_of(nova, NOW + 1).sale[Meter.INPUT_TOKENS] == 1_500_000
    assert offer.catalog.deployments("amazon.nova")[0].id == "east/amazon.nova"
    settings, _ = await room.changes.in_force()
    assert dict(endpoints_from(settings, None)["east"].credential.fields) == AWS


async def test_what_has_faults_is_refused_whole_and_every_fault_is_named(room: Room) -> None:
    await room.put("providers", "good", LIKE)
    before = await room.changes.view()
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("providers", "x", {"kind": "bedrok"}, "did you mean bedrock"),
        ("providers", "x", {"kind": "bedrock"}, "region is missing"),
        ("providers", "house", LIKE, "the settings have the provider 'house'"),
        ("providers", "local", LIKE, "the settings have the provider 'local'"),
        ("providers", "x", {**LIKE, "credential": "nobody"}, "no credential is called 'nobody'"),
        ("providers", "x", {**LIKE, "allow_private": False}, "leads into a private network"),
        ("providers", "x", {**LIKE, "base_url": "http://169.254.169.254/v1"}, "link-local"),
        ("providers", "x", {**LIKE, "base_url": "ftp://127.0.0.1"}, "http"),
        ("deployments", "d", {"provider": "goood", "model": "m"}, "did you mean good"),
        ("deployments", "d", {"provider": "good", "model": "m", "price": {"input": "1"}}, "output is missing"),
        ("deployments", "d", {"provider": "good", "model": "m", "price": {"input": "-1", "output": "1"}}, "no price"),
        ("deployments", "good/other", {"provider": "good", "model": "m"}, "another model's"),
        ("aliases", "a", {"targets": [{"deployment": "nothing"}]}, "no deployment is called 'nothing'"),
        ("aliases", "from-file", {"targets": [{"deployment": "good/m"}]}, "the settings have the alias"),
        ("aliases", "a", {"targets": [{"deployment": "good/m"}], "fallbacks": ["a"]}, "its own fallback"),
        ("aliases", "a", {"targets": [{"deployment": "good/m"}], "fallbacks": ["b"]}, "no alias or deployment"),
    ]
    for kind, name, said, problem in cases:
        with pytest.raises(Refused, match=problem) as caught:
            await room.put(kind, name, said)
        assert all(fault.todo and fault.path for fault in caught.value.faults), said
    assert await room.changes.view() == before


async def test_nothing_is_taken_away_that_something_else_names(room: Room) -> None:
    await room.keep("key", {"api_key": SECRET})
    await room.put("providers", "p", {**LIKE, "credential": "key"})
    await room.put("deployments", "d", {"provider": "p", "model": "m"})
    await room.put("aliases", "a", {"targets": [{"deployment": "d"}]})
    who = {"actor": "ann", "now_ns": NOW}
    with pytest.raises(Refused, match=r"providers\.p\.credential"):
        await room.changes.forget("key", **who)
    with pytest.raises(Refused, match=r"deployments\.d\.provider"):
        await room.changes.remove("providers", "p", **who)
    with pytest.raises(Refused, match=r"aliases\.a\.targets"):
        await room.changes.remove("deployments", "d", **who)
    for kind, name in (("aliases", "a"), ("deployments", "d"), ("providers", "p")):
        await room.changes.remove(kind, name, **who)  # type: ignore[arg-type]
    await room.changes.forget("key", **who)
    assert (await room.changes.view()).version.document == Document()
    for gone in (room.changes.forget("key", **who), room.changes.remove("aliases", "a", **who)):
        with pytest.raises(NotFound):
            await gone


async def test_an_entry_that_somebody_else_has_changed_is_not_overwritten(room: Room) -> None:
    await room.put("providers", "p", LIKE)
    seen = etag(await room.changes.entry("providers", "p"))
    await room.put("providers", "p", {**LIKE, "region": "eu"}, if_match=seen)
    with pytest.raises(Outdated) as caught:
        await room.put("providers", "p", {**LIKE, "region": "us"}, if_match=seen)
    assert caught.value.etag == etag(await room.changes.entry("providers", "p"))
    with pytest.raises(Refused, match="there already"):
        await room.put("providers", "p", LIKE, fresh=True)
    with pytest.raises(Outdated):
        await room.put("providers", "q", LIKE, if_match="*")
    await room.put("providers", "p", {**LIKE, "region": "us"}, if_match="*")


async def test_many_who_write_at_once_lose_nothing(room: Room) -> None:
    await asyncio.gather(*(room.put("providers", f"p{n}", LIKE) for n in range(6)))
    view = await room.changes.view()
    assert view.version.number == 6
    assert set(view.version.document.providers) == {f"p{n}" for n in range(6)}


async def test_an_earlier_version_comes_back_as_a_new_one(room: Room) -> None:
    await room.put("providers", "p", LIKE)
    await room.put("providers", "p", {**LIKE, "region": "eu"})
    version = await room.changes.restore(1, actor="ann", now_ns=NOW)
    assert version.number == 3
    assert version.document.providers["p"].region is None
    with pytest.raises(NotFound, match="no version 99"):
        await room.changes.restore(99, actor="ann", now_ns=NOW)


async def test_credentials_lie_sealed_and_are_never_shown_again(room: Room) -> None:
    await room.keep("key", {"api_key": SECRET, "organization": "env:ONE_KEY", "short": "tiny"})
    view = await room.changes.view()
    (stored,) = view.credentials
    assert stored.fields["api_key"].last4 == SECRET[-4:]
    assert stored.fields["organization"] == StoredField(reference="env:ONE_KEY")
    assert stored.fields["short"] == StoredField()
    async with reading(room.engine) as db:
        row = (await db.execute(select(rows))).mappings().one()
        trail = [dict(each) for each in (await db.execute(select(audit_table))).mappings()]
        assert (await audit.verify(db)).broken_at is None
    assert SECRET.encode() not in row["ciphertext"] + row["wrapped"]
    assert "api_key" not in str(row["ciphertext"])
    everything = f"{view} {trail} {Sealing('key', 'x', {'api_key': SECRET})!r} {row['shown']}"
    assert SECRET not in everything
    assert {each["action"] for each in trail} == {"credentials.put"}


async def test_a_row_that_was_swapped_opens_nowhere(room: Room) -> None:
    await room.keep("one", {"api_key": SECRET})
    await room.keep("two", {"api_key": "another-long-secret-value"})
    async with writing(room.engine) as db:
        one = (await db.execute(select(rows).where(rows.c.name == "one"))).mappings().one()
        sealed = {name: one[name] for name in ("key_id", "wrapped", "ciphertext")}
        await db.execute(update(rows).where(rows.c.name == "two").values(sealed))
    with pytest.raises(CannotOpen, match="moved from another row"):
        await room.changes.in_force()


async def test_the_ring_turns_while_gateways_run(room: Room) -> None:
    await room.keep("key", {"api_key": SECRET})
    await room.put("providers", "p", {**LIKE, "credential": "key"})
    old = key_ring(room.settings).current
    rotate_kept_ring(room.settings.data_dir)
    assert await room.changes.rewrap(actor="ann", now_ns=NOW) == 1
    assert await room.changes.rewrap(actor="ann", now_ns=NOW) == 0
    (stored,) = (await room.changes.view()).credentials
    assert stored.key_id == key_ring(room.settings).current != old
    settings, _ = await room.changes.in_force()
    assert settings.providers["p"].reveal() == {"api_key": SECRET}
    ring = room.settings.data_dir / "secrets" / "key_ring"
    ring.write_text(ring.read_text().splitlines()[0])  # The old key goes.
    assert (await room.changes.in_force())[0].providers["p"].reveal() == {"api_key": SECRET}
    ring.unlink()
    with pytest.raises(CannotOpen, match="FAREBOX_KEY_RING"):
        await room.changes.in_force()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("env:FAREBOX_KEY_PEPPER", "the gateway's own"),
        ("env:DATABASE_URL", "the gateway's own"),
        ("file:/etc/passwd", "only files below /run/secrets"),
        ("file:/run/secrets/../../etc/passwd", "only files below /run/secrets"),
        ("", "is empty"),
        ("env:NOT_THERE", "the variable is not set"),
        ("vault:secret/x#y", "VAULT_ADDR is not set"),
    ],
)
async def test_a_reference_to_what_is_ours_or_nowhere_is_refused(room: Room, text: str, problem: str) -> None:
    sealing = Sealing("key", "openai_like", {"api_key": text})
    with pytest.raises(Refused, match=problem):
        await room.put("providers", "p", {**LIKE, "credential": "key"}, sealing=sealing)
    assert (await room.changes.view()).credentials == []


async def test_one_model_by_two_accounts_is_two_deployments(room: Room) -> None:
    await room.put("providers", "p", LIKE)
    for name in ("one", "two"):
        await room.keep(name, {"api_key": f"{SECRET}-{name}"})
        await room.put("deployments", f"m-{name}", {"provider": "p", "model": "m", "credential": name})
    await room.put("aliases", "m", {"targets": [{"deployment": "m-one"}, {"deployment": "m-two"}]})
    settings, _ = await room.changes.in_force()
    endpoints = endpoints_from(settings, None)
    assert endpoints["p@one"].credential.fields != endpoints["p@two"].credential.fields
    offer = Offer(room.engine, room.settings)
    await offer.load()
    assert [each.id for each in offer.catalog.deployments("m")] == ["p/m@one", "p/m@two"]
    with pytest.raises(Refused, match="there already, as 'm-one'"):
        await room.put("deployments", "again", {"provider": "p", "model": "m", "credential": "one"})


async def test_a_deployment_is_sold_at_anothers_price(room: Room) -> None:
    await room.put("deployments", "first", {"provider": "house", "model": "a", "price": {"input": "2", "output": "3"}})
    await room.put("deployments", "second", {"provider": "house", "model": "b", "price_as": "house/a"})
    offer = Offer(room.engine, room.settings)
    await offer.load()
    (second,) = offer.catalog.deployments("house/b")
    assert offer.price_of(second, NOW + 1).sale[Meter.INPUT_TOKENS] == 2_000_000
    async with reading(room.engine) as db:
        assert "b" not in (await load_prices(db)).models("house")
