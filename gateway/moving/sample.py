"""A sample organisation: teams, projects, keys, and days of usage at the price book's own prices. Marked by its name.

The same seed makes the same requests, so doing it twice changes nothing; a later day adds that day.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from billing import accounts, ledger, sample
from billing.accounts import Scope, Window
from billing.db import AsyncEngine, reading, writing
from billing.errors import UnknownPrice
from billing.money import PUSD_PER_USD
from billing.prices import PriceBook, PriceSheet
from billing.rating import Charge, charge
from billing.sums import NS_PER_DAY
from billing.usage import Meter, Outcome, UsageRecord
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.schema import virtual_keys

ORGANISATION: Final = "org_sample"
NAME: Final = "Sample: Harbour Books"
MARK: Final = "sample: "
TAG: Final = "sample"

# project, its team
PROJECTS: Final = (("shop", "Storefront"), ("search", "Storefront"), ("support", "Care"))
# name, project, share of the requests, budget of a month in USD
KEYS: Final = (
    ("web", "shop", 0.42, 60),
    ("ranking", "search", 0.25, None),
    ("nightly", "search", 0.15, 25),
    ("desk", "support", 0.13, 15),
    ("ci", "shop", 0.05, 5),
)
# provider, model, share, tokens a second, first token in ms
MODELS: Final = (
    ("openai", "gpt-4o-mini", 0.3, 90, 350),
    ("anthropic", "claude-sonnet-5", 0.22, 70, 700),
    ("groq", "llama-3.3-70b-versatile", 0.2, 280, 120),
    ("vertex", "gemini-2.5-flash", 0.16, 160, 400),
    ("cerebras", "llama3.1-8b", 0.12, 900, 90),
)
USERS: Final = ("ann", "ben", "chi", "dora", None, None)


class Made(Struct, frozen=True):
    """One request that never was, and what it would have cost."""

    record: UsageRecord
    charge: Charge


class Sample:
    """The sample organisation of one installation. book: prices; those of `at_ns` are taken for every day, and a model
    without one is left out."""

    def __init__(self, engine: AsyncEngine, keys: KeyAdmin, book: PriceBook, actor: str, at_ns: int) -> None:
        self._engine, self._keys, self._book, self._actor = engine, keys, book, actor
        self._prices_at_ns = at_ns
        self._key_ids: dict[str, str] = {}

    async def found(self, now_ns: int) -> dict[str, str]:
        """Organisation, teams, projects and keys, as far as they are missing. Returns: texts of keys that are new."""
        new: dict[str, str] = {}
        try:
            async with writing(self._engine) as db:
                await accounts.create_organisation(db, ORGANISATION, NAME, at_ns=now_ns)
                for team in dict.fromkeys(team for _, team in PROJECTS):
                    await accounts.create_team(db, _team(team), ORGANISATION, team, at_ns=now_ns)
                for project, team in PROJECTS:
                    await accounts.create_project(db, _project(project), ORGANISATION, project, at_ns=now_ns)
                    await accounts.join_team(db, _project(project), _team(team))
                await ledger.top_up(
                    db, ORGANISATION, 500 * PUSD_PER_USD, "sample-1", at_ns=now_ns, note="Sample: paid in"
                )
        except IntegrityError:
            pass  # It is there.
        known = await self.key_ids()
        for name, project, _, budget in KEYS:
            if name not in known:
                made = await self._keys.create_key(
                    project_id=_project(project), name=f"{MARK}{name}", actor=self._actor, now_ns=now_ns,
                    terms=KeyTerms(rpm=600),
                    budgets=[] if budget is None else [(Window.MONTH, budget * PUSD_PER_USD)],
                )  # fmt: skip
                new[name] = made.plain or ""
        await self._keys.set_budget(
            Scope.TEAM, _team("Storefront"), Window.MONTH, 150 * PUSD_PER_USD, actor=self._actor, now_ns=now_ns
        )
        self._key_ids = await self.key_ids()
        return new

    @property
    def priced(self) -> bool:
        return any(self._sheet(provider, model) for provider, model, *_ in MODELS)

    async def key_ids(self) -> dict[str, str]:
        """Name without the mark -> id, of keys that are not revoked."""
        table = virtual_keys.c
        query = select(table.name, table.id).where(table.organisation_id == ORGANISATION, table.revoked_at_ns.is_(None))
        async with reading(self._engine) as db:
            return {row.name.removeprefix(MARK): row.id for row in await db.execute(query)}

    def history(self, days: int, a_day: int, now_ns: int) -> Iterator[list[Made]]:
        """A list for each day, the oldest first, up to now. Fewer at night and on weekends."""
        today = now_ns // NS_PER_DAY
        for day in range(today - days + 1, today + 1):
            chance = random.Random(f"{TAG} {day}")  # noqa: S311 - samples
            weekend = (day + 3) % 7 >= 5  # The first day of 1970 was a Thursday.
            count = round(a_day * (0.45 if weekend else 1.0) * chance.uniform(0.85, 1.15))
            times = sorted(min(max(chance.gauss(0.58, 0.17), 0.0), 0.9999) for _ in range(count))
            made = [
                self.request(f"sample:{day}:{n}", day * NS_PER_DAY + int(share * NS_PER_DAY), chance)
                for n, share in enumerate(times)
            ]
            yield [each for each in made if each is not None and each.record.at_ns < now_ns]

    def request(self, id_: str, at_ns: int, chance: random.Random) -> Made | None:
        """None: its model has no price here."""
        name, project, _, _ = chance.choices(KEYS, [key[2] for key in KEYS])[0]
        provider, model, _, pace, first_ms = chance.choices(MODELS, [each[2] for each in MODELS])[0]
        failed = chance.random() < 0.015
        asked = int(chance.lognormvariate(8.2, 0.9))
        cached = int(asked * chance.choice((0, 0, 0.4, 0.8)))
        said = 0 if failed else int(chance.lognormvariate(6.0, 0.8)) + 1
        used = {Meter.INPUT_TOKENS: asked - cached, Meter.CACHE_READ_TOKENS: cached, Meter.OUTPUT_TOKENS: said}
        wait = int(first_ms * chance.lognormvariate(0, 0.35))
        user = chance.choice(USERS)
        sheet = self._sheet(provider, model)
        if sheet is None:
            return None
        try:
            price = Charge(0, 0) if failed else charge(used, sheet)
        except UnknownPrice:
            return None
        record = UsageRecord(
            id=id_,
            at_ns=at_ns,
            organisation_id=ORGANISATION,
            project_id=_project(project),
            key_id=self._key_ids[name],
            end_user=user,
            alias=model,
            provider=provider,
            model=model,
            deployment=f"{provider}/{model}",
            price_id=sheet.id,
            quantities={} if failed else used,
            estimated=False,
            outcome=Outcome.UPSTREAM_FAILED if failed else Outcome.COMPLETED,
            hold_pusd=price.sale_pusd,
            finish_reason=None if failed else "stop",
            first_token_ms=None if failed else wait,
            duration_ms=wait + said * 1000 // pace,
            status=502 if failed else 200,
            dialect="openai_chat",
            tags=(TAG,),
        )
        return Made(record, price)

    def _sheet(self, provider: str, model: str) -> PriceSheet | None:
        try:
            return self._book.sheet(provider, model, self._prices_at_ns)
        except UnknownPrice:
            return None


async def clear(engine: AsyncEngine, keys: KeyAdmin) -> dict[str, int]:
    """Everything of the sample organisation, and nothing else. Returns: rows that went, by table."""
    async with reading(engine) as db:
        table = virtual_keys.c
        query = select(table.id).where(table.organisation_id == ORGANISATION)
        key_ids: Sequence[str] = list((await db.execute(query)).scalars())
    async with writing(engine) as db:
        gone = await sample.remove(db, ORGANISATION, key_ids)
        if key_ids:
            row = virtual_keys.delete().where(virtual_keys.c.organisation_id == ORGANISATION)
            gone["virtual_keys"] = gone.get("virtual_keys", 0) + (await db.execute(row)).rowcount
    await keys.changed()
    return gone


def _team(name: str) -> str:
    return f"team_sample_{name.lower()}"


def _project(name: str) -> str:
    return f"proj_sample_{name}"
