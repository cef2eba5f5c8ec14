"""What LiteLLM's PostgreSQL holds, into our tables: organisations, teams, projects, keys, budgets, limits, spending.

Everything gets an id that follows from LiteLLM's, so that doing it again adds only what is new. LiteLLM keeps keys as
SHA-256 and we as HMAC under a pepper: a key whose text nobody has is made anew, under the same terms.
Source: LiteLLM's schema.prisma and its migrations up to 2026-02, read 2026-11. A column that an older one lacks is
taken as empty.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import asyncpg
from msgspec import Struct
from sqlalchemy import select

from billing import accounts, ledger
from billing.accounts import Scope, Window
from billing.db import AsyncEngine, reading, writing
from billing.money import MAX_AMOUNT_PUSD, PUSD_PER_USD
from billing.rating import Charge
from billing.usage import Meter, Outcome, UsageRecord
from billing.worker import Charged, book
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.moving.litellm_config import KINDS
from gateway.moving.report import Report
from gateway.schema import virtual_keys

BATCH: Final = 500
PRICE_ID: Final = "litellm"
"""Stands where a price would: what LiteLLM charged is taken as it is."""
KEY_CHARS_MIN: Final = 16
"""LiteLLM lets people choose keys of their own, shorter than ours may be."""
_EVERY_MODEL: Final = frozenset({"all-proxy-models", "all-team-models", "*"})
_SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "mo": 30 * 86_400}
_WINDOWS: Final = ((Window.HOUR, 3600), (Window.DAY, 86_400), (Window.MONTH, 30 * 86_400))


class Issued(Struct, frozen=True):
    """A key as it is now. was: how LiteLLM shows the old one. key: the new one's text; None where the old one goes on
    working."""

    name: str
    was: str
    project: str
    id: str
    key: str | None


class Place(Struct, frozen=True):
    organisation_id: str
    project_id: str
    project: str


class Move:
    """One run. `advance` is told of each row of spending that was looked at."""

    def __init__(
        self, source: asyncpg.Connection, engine: AsyncEngine, keys: KeyAdmin, report: Report, actor: str, now_ns: int
    ) -> None:
        self._source, self._engine, self._keys = source, engine, keys
        self._report, self._actor, self._now_ns = report, actor, now_ns
        self._tables: dict[str, set[str]] = {}
        self._budgets: dict[str, Mapping[str, Any]] = {}
        self._teams: dict[str, tuple[Place, tuple[str, ...] | None]] = {}
        self._projects: dict[str, Place] = {}
        self._organisations: dict[str | None, str] = {}
        self._homes: dict[str, Place] = {}
        self._key_ids: dict[str, tuple[str, Place]] = {}

    async def people_and_keys(self, plain: Sequence[str]) -> list[Issued]:
        """plain: texts of LiteLLM keys that are to go on working as they are. Raises: asyncpg.PostgresError."""
        found = await self._source.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_name LIKE 'LiteLLM\\_%'"
        )
        for row in found:
            self._tables.setdefault(row["table_name"], set()).add(row["column_name"])
        self._budgets = {row["budget_id"]: row for row in await self._rows("LiteLLM_BudgetTable")}
        for row in await self._rows("LiteLLM_OrganizationTable"):
            await self._organisation(row)
        for row in await self._rows("LiteLLM_TeamTable"):
            await self._team(row)
        for row in await self._rows("LiteLLM_ProjectTable"):
            await self._project(row)
        texts = {hashlib.sha256(text.encode()).hexdigest(): text for text in plain}
        async with reading(self._engine) as db:
            ours = {row.name: row.id for row in await db.execute(select(virtual_keys.c.name, virtual_keys.c.id))}
        issued = [await self._key(row, texts, ours) for row in await self._rows("LiteLLM_VerificationToken")]
        await self._say_the_rest()
        return [each for each in issued if each is not None]

    async def count_spending(self) -> int:
        if "LiteLLM_SpendLogs" not in self._tables:
            return 0
        return int(await self._source.fetchval('SELECT count(*) FROM "LiteLLM_SpendLogs"'))

    async def spending(self, advance: Callable[[int], None]) -> int:
        """Every request of SpendLogs as a usage row with the charge it had. What an organisation spent there is taken
        as paid there: an adjustment of the same amount stands beside it. Returns: rows that are new."""
        if "LiteLLM_SpendLogs" not in self._tables:
            return 0
        new = 0
        async with self._source.transaction(readonly=True):
            cursor = await self._source.cursor('SELECT * FROM "LiteLLM_SpendLogs" ORDER BY "startTime", request_id')
            while rows := await cursor.fetch(BATCH):
                charged = [await self._spent(row) for row in rows]
                async with writing(self._engine) as db:
                    added = await book(db, charged, _settled_there)
                new += len(added)
                advance(len(rows))
        self._report.carry(
            f"{new} requests of LiteLLM_SpendLogs", "usage rows, charged as LiteLLM did, settled by adjustment"
        )
        return new

    # Who

    async def _organisation(self, row: Mapping[str, Any]) -> None:
        organisation_id = await self._make_organisation(row["organization_id"], row["organization_alias"])
        budget = self._budgets.get(row.get("budget_id") or "", {})
        await self._bound(Scope.ORGANISATION, organisation_id, budget, f"organisation {row['organization_alias']}")

    async def _make_organisation(self, their_id: str | None, name: str) -> str:
        ours = f"org_{_digest(their_id)}" if their_id else "org_litellm"
        self._organisations[their_id] = ours
        async with writing(self._engine) as db:
            known = await accounts.organisations(db)
            if ours not in {each.id for each in known}:
                name = _free(name, {each.name for each in known})
                await accounts.create_organisation(db, ours, name, at_ns=self._now_ns)
                self._report.carry(f"organisation {name}", ours)
        return ours

    async def _in(self, their_organisation: str | None) -> str:
        known = self._organisations.get(their_organisation) or self._organisations.get(None)
        return known or await self._make_organisation(None, "LiteLLM")

    async def _team(self, row: Mapping[str, Any]) -> None:
        """A team of ours holds no keys: its project does, under the same name."""
        their_id, name = row["team_id"], row.get("team_alias") or row["team_id"]
        organisation_id, team_id = await self._in(row.get("organization_id")), f"team_{_digest(their_id)}"
        async with writing(self._engine) as db:
            known = await accounts.teams(db, organisation_id)
            if team_id not in {each.id for each in known}:
                name = _free(name, {each.name for each in known})
                await accounts.create_team(db, team_id, organisation_id, name, at_ns=self._now_ns)
                self._report.carry(f"team {name}", f"{team_id}, and a project of that name for its keys")
        place = await self._make_project(f"proj_{_digest(their_id)}", organisation_id, name, team_id)
        self._teams[their_id] = (place, _models(row.get("models")))
        await self._bound(Scope.TEAM, team_id, row, f"team {name}")
        for unit, column in (("requests", "rpm_limit"), ("tokens", "tpm_limit"), ("parallel", "max_parallel_requests")):
            if row.get(column):
                await self._keys.set_rate_limit(
                    Scope.TEAM, team_id, unit, int(row[column]), actor=self._actor, now_ns=self._now_ns,  # type: ignore[arg-type]
                )  # fmt: skip
        if row.get("blocked"):
            self._report.leave(f"team {name} is blocked", "revoke its keys: `farebox keys revoke`")
        if members := row.get("members_with_roles"):
            self._report.leave(f"members of team {name} ({members.count('user_id')})", "invite them: `farebox users`")

    async def _project(self, row: Mapping[str, Any]) -> None:
        team = self._teams.get(row.get("team_id") or "")
        organisation_id = team[0].organisation_id if team else await self._in(None)
        team_id = f"team_{_digest(row['team_id'])}" if team else None
        name = row.get("project_alias") or row["project_id"]
        place = await self._make_project(f"proj_{_digest(row['project_id'])}", organisation_id, name, team_id)
        self._projects[row["project_id"]] = place
        budget = self._budgets.get(row.get("budget_id") or "", {})
        await self._bound(Scope.PROJECT, place.project_id, budget, f"project {name}")

    async def _make_project(self, project_id: str, organisation_id: str, name: str, team_id: str | None) -> Place:
        async with writing(self._engine) as db:
            known = await accounts.projects(db, organisation_id)
            here = next((each for each in known if each.id == project_id), None)
            if here is None:
                name = _free(name, {each.name for each in known})
                here = await accounts.create_project(db, project_id, organisation_id, name, at_ns=self._now_ns)
                self._report.carry(f"project {name}", project_id)
            if team_id is not None:
                await accounts.join_team(db, project_id, team_id)
        return Place(organisation_id, project_id, here.name)

    # Keys

    async def _key(self, row: Mapping[str, Any], texts: Mapping[str, str], ours: Mapping[str, str]) -> Issued | None:
        token, shown = row["token"], row.get("key_name") or "sk-..."
        alias = row.get("key_alias") or shown
        place, team_models = await self._home(row)
        # The only word of ours that a key of another making can be known again by.
        name = f"{alias[:170]} (litellm {token[:10]})"
        what = f"key {alias}"
        if name in ours:
            self._key_ids[token] = (ours[name], place)
            return None
        if row.get("blocked"):
            self._report.leave(what, "blocked in LiteLLM: no new one was made")
            return None
        expires_ns = _ns(row["expires"]) if row.get("expires") else None
        if expires_ns is not None and expires_ns <= self._now_ns:
            self._report.leave(what, "expired")
            return None
        budget = dict(self._budgets.get(row.get("budget_id") or "", {}))
        said = budget | {name: value for name, value in row.items() if value is not None}
        models = _models(row.get("models"))
        terms = KeyTerms(
            models=team_models if models is None else models,
            rpm=_limit(said.get("rpm_limit")),
            tpm=_limit(said.get("tpm_limit")),
            parallel=_limit(said.get("max_parallel_requests")),
            expires_at_ns=expires_ns,
        )
        budgets = [] if (bound := self._budget(said, what)) is None else [bound]
        text = texts.get(token)
        new = await self._keys.create_key(
            project_id=place.project_id, name=name, actor=self._actor, now_ns=self._now_ns, terms=terms,
            budgets=budgets, plain=text, plain_chars_min=KEY_CHARS_MIN,
        )  # fmt: skip
        self._key_ids[token] = (new.key_id, place)
        if text is None:
            self._report.change(
                what, "its text is not in LiteLLM's database, only a hash: re-issued, give it to its owner"
            )
        else:
            self._report.carry(what, "works on as it is")
        for column in ("aliases", "config", "permissions", "model_max_budget", "allowed_routes"):
            if row.get(column) not in (None, "{}", {}, []):
                self._report.leave(f"{column} of {what}", "no such thing of a key here")
        return Issued(alias, shown, place.project, new.key_id, None if text else new.plain)

    async def _home(self, row: Mapping[str, Any]) -> tuple[Place, tuple[str, ...] | None]:
        team = self._teams.get(row.get("team_id") or "")
        if (project := self._projects.get(row.get("project_id") or "")) is not None:
            return project, team[1] if team else None
        if team is not None:
            return team
        organisation_id = await self._in(row.get("organization_id"))
        if organisation_id not in self._homes:
            project_id = f"proj_{_digest(f'keys of {organisation_id}')}"
            self._homes[organisation_id] = await self._make_project(
                project_id, organisation_id, "Keys of LiteLLM", None
            )
        return self._homes[organisation_id], None

    # Money

    async def _bound(self, scope: Scope, scope_id: str, said: Mapping[str, Any], what: str) -> None:
        if (bound := self._budget(said, what)) is not None:
            window, limit_pusd = bound
            await self._keys.set_budget(scope, scope_id, window, limit_pusd, actor=self._actor, now_ns=self._now_ns)

    def _budget(self, said: Mapping[str, Any], what: str) -> tuple[Window, int] | None:
        if said.get("soft_budget"):
            self._report.leave(
                f"soft budget of {what}", "`farebox alerts add budget 80% ...` tells before a budget is used"
            )
        if said.get("max_budget") is None:
            return None
        window, exact = window_of(said.get("budget_duration"))
        limit_pusd = min(pusd(said["max_budget"]), MAX_AMOUNT_PUSD)
        if exact:
            self._report.carry(f"budget of {what}", f"{said['max_budget']:g} USD {window.value}")
        else:
            self._report.change(
                f"budget of {what}",
                f"each {said['budget_duration']} is {window.value} here, for the same amount: stricter",
            )
        return window, limit_pusd

    async def _spent(self, row: Mapping[str, Any]) -> tuple[UsageRecord, Charge]:
        key_id, place = self._key_ids.get(row["api_key"]) or ("litellm", None)
        if place is None:
            team = self._teams.get(row.get("team_id") or "")
            place = team[0] if team else (await self._home({}))[0]
        amount = min(pusd(row["spend"]), MAX_AMOUNT_PUSD)
        provider = row.get("custom_llm_provider") or "unknown"
        begun_ns = _ns(row["startTime"])
        first = row.get("completionStartTime")
        failed = row.get("status") == "failure"
        record = UsageRecord(
            id=f"litellm:{row['request_id']}"[:128],
            at_ns=begun_ns,
            organisation_id=place.organisation_id,
            project_id=place.project_id,
            key_id=key_id,
            end_user=row.get("end_user") or None,
            alias=row.get("model_group") or row["model"] or "unknown",
            provider=KINDS.get(provider, provider),
            model=row["model"].rpartition("/")[2] or "unknown",
            deployment=f"litellm/{row.get('model_id') or row['model']}",
            price_id=PRICE_ID,
            quantities={Meter.INPUT_TOKENS: row["prompt_tokens"], Meter.OUTPUT_TOKENS: row["completion_tokens"]},
            estimated=False,
            outcome=Outcome.UPSTREAM_FAILED if failed else Outcome.COMPLETED,
            hold_pusd=amount,
            first_token_ms=None if first is None else max(0, (_ns(first) - begun_ns) // 10**6),
            duration_ms=max(0, (_ns(row["endTime"]) - begun_ns) // 10**6),
            dialect="litellm",
        )
        return record, Charge(amount, amount)

    # The rest

    async def _rows(self, table: str) -> list[dict[str, Any]]:
        if table not in self._tables:
            return []
        return [dict(row) for row in await self._source.fetch(f'SELECT * FROM "{table}"')]  # noqa: S608 - names of ours

    async def _say_the_rest(self) -> None:
        for table, why in (
            ("LiteLLM_UserTable", "people sign in anew: `farebox users`, or single sign-on"),
            (
                "LiteLLM_EndUserTable",
                "a budget for each end user is one for all of a project: `farebox quotas budget end_user`",
            ),
            ("LiteLLM_TagTable", "`farebox quotas budget tag ORGANISATION/TAG 5usd`"),
            ("LiteLLM_ProxyModelTable", "models made in LiteLLM's UI: put them into its config.yaml, or add them here"),
            ("LiteLLM_CredentialsTable", "encrypted under LiteLLM's salt key: give them anew"),
            ("LiteLLM_MCPServerTable", "Farebox passes tool calls through and runs none"),
        ):
            if table in self._tables:
                count = await self._source.fetchval(f'SELECT count(*) FROM "{table}"')  # noqa: S608 - names of ours
                if count:
                    self._report.leave(f"{count} rows of {table}", why)


def _settled_there(added: Sequence[Charged]) -> list[ledger.Transfer]:
    """For each organisation as much as its requests cost."""
    sums: dict[str, int] = {}
    for record, charge in added:
        sums[record.organisation_id] = sums.get(record.organisation_id, 0) + charge.sale_pusd
    return [
        ledger.adjustment(
            organisation_id, amount, f"litellm:{_digest(added[0][0].id)}:{organisation_id}",
            at_ns=added[-1][0].at_ns, note="Usage that was settled in LiteLLM",
        )
        for organisation_id, amount in sums.items()
        if amount
    ]  # fmt: skip


def window_of(duration: str | None) -> tuple[Window, bool]:
    """Our window for a span such as 30d, and whether it is the same. Else the next longer one, which is stricter."""
    if not duration:
        return Window.TOTAL, True
    found = re.fullmatch(r"([0-9]+)(s|mo|m|h|d|w)", duration.strip())
    if found is None:
        return Window.TOTAL, False
    seconds = int(found[1]) * _SPANS[found[2]]
    return next(((window, seconds == span) for window, span in _WINDOWS if seconds <= span), (Window.TOTAL, False))


def pusd(dollars: float) -> int:
    """LiteLLM adds up money in floats; the shortest digits that mean one are what it would show."""
    return max(0, int((Decimal(repr(float(dollars))) * PUSD_PER_USD).to_integral_value()))


def _models(said: Sequence[str] | None) -> tuple[str, ...] | None:
    """None: all of them."""
    return None if not said or _EVERY_MODEL & set(said) else tuple(said)


def _limit(said: Any) -> int | None:
    return None if said is None else int(said)


def _ns(moment: datetime.datetime) -> int:
    """Prisma's timestamps have no zone and mean UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int(aware.timestamp() * 1000) * 10**6


def _digest(text: str | None) -> str:
    return hashlib.sha256(f"litellm {text}".encode()).hexdigest()[:16]


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else f"{name} (LiteLLM)"
