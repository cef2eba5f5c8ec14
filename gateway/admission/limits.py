"""Requests, tokens, parallel requests and money of every scope, taken together or not at all. One script does it.

`limits.lua` holds the rules; here are its keys, its arguments and what its answers mean. Redis holds no money: a
counter that is missing is made from SQL and from what every living gateway says that it holds (`muster.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import quote

import hiredis
from msgspec import Struct
from msgspec.structs import replace

from billing.money import MAX_AMOUNT_PUSD, format_usd
from gateway.admission.link import Arg, Command, Reply
from gateway.admission.principal import END_USER, PROVIDER, Budget, Facts, Limit, Principal, concerns, window_of
from gateway.admission.store import AnyLink
from gateway.errors import LimitsAway, QuotaExceeded, RateLimited, Unavailable

# A crashed process gives its parallel slots back after this long; a living one renews at a third of it.
LEASE_MS: Final = 60_000
# An open reservation is remembered until somebody settles it; by then an operator has had a week to start the worker.
RECORD_MS: Final = 8 * 86_400_000
# A settlement whose reply was lost is recognised for this long. At 1,000 requests a second this is 12 MB of Redis.
DONE_MS: Final = 120_000
# Tries to make a counter before the client is told to come back: each costs a sum over usage rows.
LOAD_TRIES: Final = 5
# Nothing says when a parallel request will end.
PARALLEL_RETRY_S: Final = 1.0

_DAY_MS: Final = 86_400_000
_SCRIPT: Final = (Path(__file__).parent / "limits.lua").read_text(encoding="utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
# What Redis says when it is there and still cannot: starting, full, a replica, without disk, without rights.
_AWAY: Final = ("LOADING", "OOM", "READONLY", "MISCONF", "MASTERDOWN", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "NOAUTH")


class Window(Struct, frozen=True):
    """A limit after a reservation. reset_ms: until nothing of it is used any more."""

    limit: Limit
    remaining: int
    reset_ms: int


class Taken(Struct, frozen=True):
    """windows: each rate limit as it stands after the reservation. past: the budgets that did not cover it and let it
    through all the same."""

    windows: tuple[Window, ...]
    past: tuple[Budget, ...] = ()


class Scopes(Struct, frozen=True, dict=True):
    """The limits and budgets that one request counts against, with their Redis keys. All in the organisation's slot."""

    prefix: str
    buckets: tuple[Limit, ...]
    slots: tuple[Limit, ...]
    budgets: tuple[Budget, ...]
    window_starts_ns: tuple[int, ...]
    keys: tuple[str, ...]

    @property
    def slot_keys(self) -> tuple[str, ...]:
        return self.keys[len(self.buckets) : len(self.buckets) + len(self.slots)]

    @property
    def budget_keys(self) -> tuple[str, ...]:
        return self.keys[len(self.buckets) + len(self.slots) :]

    @cached_property
    def forms(self) -> dict[tuple[str, str, str | None], bytes]:
        """By operation, the server's life and what else it depends on: its command on these keys, but for what differs
        by request."""
        return {}

    @cached_property
    def token_room(self) -> int | None:
        """The largest request that every limit of tokens has room for. None: there is no such limit."""
        return min((bucket.limit for bucket in self.buckets if bucket.unit == "tokens"), default=None)

    @cached_property
    def muster(self) -> str:
        return f"{self.prefix}:muster"

    def of_budget(self, at: int) -> Scopes:
        """One budget alone."""
        budget, start_ns = self.budgets[at], self.window_starts_ns[at]
        return Scopes(self.prefix, (), (), (budget,), (start_ns,), (self.budget_keys[at],))

    @property
    def bare(self) -> Scopes:
        """The organisation alone."""
        return Scopes(self.prefix, (), (), (), (), ())


class Spending(Struct, frozen=True):
    """What SQL has charged to a budget, in pUSD, and which of the requests that were asked about are in that sum or
    in none at all because their row has come to nothing."""

    pusd: int
    counted: frozenset[str] = frozenset()


Spent = Callable[[Budget, int, Sequence[str]], Awaitable[Spending]]
"""(budget, start of its window in unix ns, request ids) -> what was charged since then, and to whom of these: of one
snapshot."""
Assemble = Callable[[Scopes], Awaitable[Sequence[str]]]
"""Has every living gateway announce what it holds in an organisation. Returns: which have to be there."""


def scopes_of(principal: Principal, facts: Facts, now_ms: int) -> Scopes:
    """What a request of this key counts against at this time: a budget of a month has another key in the next one."""
    prefix = prefix_of(principal.organisation_id)
    buckets, slots, bucket_keys, slot_keys = [], [], [], []
    budgets, starts, money_keys = [], [], []
    for limit in principal.limits:
        if not concerns(limit.scope, limit.scope_id, facts):
            continue
        name = _named(limit.scope, limit.scope_id, facts.end_user)
        if limit.unit == "parallel":
            slots.append(limit)
            slot_keys.append(f"{prefix}:s:{name}")
        else:
            buckets.append(limit)
            bucket_keys.append(f"{prefix}:b:{name}:{limit.unit}:{limit.window_ms}")
    for budget in principal.budgets:
        if concerns(budget.scope, budget.scope_id, facts):
            window, start_ns = window_of(budget.period, now_ms)
            name = _named(budget.scope, budget.scope_id, facts.end_user)
            budgets.append(replace(budget, end_user=facts.end_user) if budget.scope == END_USER else budget)
            starts.append(start_ns)
            money_keys.append(f"{prefix}:m:{name}:{budget.period}:{window}")
    keys = (*bucket_keys, *slot_keys, *money_keys)
    return Scopes(prefix, tuple(buckets), tuple(slots), tuple(budgets), tuple(starts), keys)


def _named(scope: str, scope_id: str, end_user: str | None) -> str:
    name = f"{scope}:{_quoted(scope_id)}"
    if scope == END_USER and end_user is not None:
        # Clients choose these names, of any length and content.
        name += ":" + hashlib.blake2s(end_user.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return name


def prefix_of(organisation_id: str) -> str:
    """What the keys of an organisation begin with; nothing in it means anything to MATCH."""
    return f"fb:{{{_quoted(organisation_id)}}}"


def _quoted(name: str) -> str:
    # The record lists keys between spaces, and braces mark the part of a key that Redis Cluster hashes.
    return quote(name, safe="-_.~@")


class Limiter:
    """Takes and gives back. Knows nothing of requests in flight; `Gate` does."""

    def __init__(self, link: AnyLink, spent: Spent, owner: str = "alone", assemble: Assemble | None = None) -> None:
        """owner: this gateway's name, without spaces. assemble: None where there is no other gateway."""
        self._link = link
        self._spent = spent
        self._owner = owner
        self._assemble = assemble or self._alone
        self._loading: dict[str, asyncio.Future[None]] = {}

    async def reserve(
        self, request_id: str, scopes: Scopes, *, tokens: int, hold_pusd: int, lease_ms: int = LEASE_MS
    ) -> Taken:
        """Take one request, these tokens, one slot and this money from every scope, or nothing from any.

        Raises: RateLimited, QuotaExceeded; Unavailable, after which it is
        not known whether anything was taken: `settle` with zeros gives it back."""
        values = [tokens, hold_pusd, *[tokens for bucket in scopes.buckets if bucket.unit == "tokens"]]
        values += [budget.need_pusd(hold_pusd) for budget in scopes.budgets]
        for _ in range(LOAD_TRIES):
            reply = await self._run_form("reserve", request_id, scopes, str(lease_ms), values)
            if reply[0] != b"unknown":
                break
            await self._load_missing(scopes)
        else:
            raise Unavailable("budget counters vanish as fast as they are made")
        if reply[0] == b"ok":
            numbers = list(map(int, reply[1:]))
            windows = tuple(
                [Window(limit, max(0, numbers[2 * i]), numbers[2 * i + 1]) for i, limit in enumerate(scopes.buckets)]
            )
            past = numbers[2 * len(windows) :]
            return Taken(windows, tuple([scopes.budgets[at - 1] for at in past]) if past else ())
        raise _refusal(reply, scopes, tokens, hold_pusd)

    async def settle(
        self,
        request_id: str,
        scopes: Scopes,
        *,
        tokens: int,
        charge_pusd: int,
        requests: int = 1,
        orphan: bool = False,
        provider: str | None = None,
    ) -> bool:
        """Replace what was reserved by what was used; more may be used than was reserved. Sent again it does nothing.

        orphan: only if Redis still remembers the reservation. provider: who answered; what was reserved of others'
        limits and budgets goes back whole. None: nobody, or one does not know.
        Returns: whether this call did it. Raises: Unavailable, then it may be sent again."""
        values = _settled(tokens, requests, charge_pusd, orphan)
        reply = await self._run_form("settle", request_id, scopes, provider, values)
        return bool(reply[0] != b"done")

    def begin_settling(
        self,
        request_id: str,
        scopes: Scopes,
        tokens: int,
        charge_pusd: int,
        requests: int,
        provider: str | None,
    ) -> Awaitable[Reply]:
        """As `settle`, on its way before it is awaited where the store is there. Raises, when awaited, whatever the
        store says: `settle` then does it, or says why not."""
        values = _settled(tokens, requests, charge_pusd, orphan=False)
        return self._link.call_booted(self._formed("settle", request_id, scopes, provider, values), near=scopes.muster)

    async def renew(
        self, request_id: str, scopes: Scopes, *, tokens: int, hold_pusd: int, lease_ms: int = LEASE_MS
    ) -> bool:
        """Keep the reservation for another lease, and take its hold anew where Redis lost it, without asking whether
        it fits: the request runs already. Returns: False when it was settled before. Raises: Unavailable."""
        args: list[Arg] = [lease_ms, RECORD_MS, tokens, hold_pusd, secrets.token_hex(4)]
        reply = await self._run("renew", request_id, scopes, args)
        return bool(reply[0] == b"ok")

    async def called(self, scopes: Scopes) -> tuple[bytes, bool]:
        """Returns: the token under which to announce what this gateway holds, and whether it has done so."""
        reply = await self._run("call", "-", scopes.bare, [secrets.token_hex(4)])
        return reply[0], bool(reply[1])

    async def present(self, scopes: Scopes, token: bytes) -> bool:
        """All that this gateway holds in the organisation has been renewed since `called`. Returns: False when Redis
        has lost it meanwhile."""
        reply = await self._run("present", "-", scopes.bare, [token])
        return bool(reply[0] == b"ok")

    async def load_budget(self, scopes: Scopes, at: int) -> bool:
        """Make the counter of a budget unless there is one: of two loaders the first wins, and the second, who may
        have read SQL before the first one's requests, changes nothing.

        Returns: False when it has to be tried again. Raises: Unavailable."""
        one = scopes.of_budget(at)
        (key,), (budget,), (start_ns,) = one.keys, one.budgets, one.window_starts_ns
        required = await self._assemble(scopes)
        listed = await self._command("HKEYS", key) or ()
        asked = [name[2:].decode() for name in listed if name[:2] in (b"o:", b"c:")]
        spent = await self._spent(budget, start_ns, asked)
        ttl_ms = {"hour": _DAY_MS, "day": 2 * _DAY_MS, "month": 32 * _DAY_MS}.get(budget.period, 0)
        ttl_ms += RECORD_MS if ttl_ms else 0  # Late settlements of the window still find it.

        def args(boot: str) -> list[Arg]:
            generation = boot + secrets.token_hex(4)
            return [budget.limit_pusd - spent.pusd, budget.limit_pusd, generation, ttl_ms, len(required), *required]

        known = [x for request_id in asked for x in (request_id, int(request_id in spent.counted))]
        reply = await self._run("load", "-", one, lambda boot: [*args(boot), *known])
        return reply[0] in (b"ok", b"known")

    async def available_pusd(self, scopes: Scopes) -> tuple[int | None, ...]:
        """What each budget would cover now; None where no counter has been made yet."""
        replies = await asyncio.gather(*(self._command("HMGET", key, "a", "l") for key in scopes.budget_keys))
        return tuple(None if limit is None else int(available) for available, limit in replies)

    async def expired(self, organisation_id: str, limit: int = 5_000) -> list[tuple[str, str, int]]:
        """(request id, its gateway, how many ms ago its lease ran out) of reservations without settlement: their
        process is gone, or could not reach Redis. Their money stays held until `correct` says what they cost."""
        prefix = prefix_of(organisation_id)
        leases = f"{prefix}:leases"
        seconds, micros = await self._command("TIME", near=leases)
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        found = await self._command("ZRANGEBYSCORE", leases, "-inf", now_ms, "WITHSCORES", "LIMIT", 0, limit)
        ids = [
            (request_id.decode(), now_ms - int(float(end)))
            for request_id, end in zip(found[::2], found[1::2], strict=True)
        ]
        records = await asyncio.gather(*(self._command("GET", f"{prefix}:r:{request_id}") for request_id, _ in ids))
        expired = []
        for (request_id, ago_ms), record in zip(ids, records, strict=True):
            if record is None or record == b"done":
                await self._command("ZREM", leases, request_id)
            else:
                expired.append((request_id, record.split(b" ")[3].decode(), ago_ms))
        return expired

    async def correct(self, organisation_id: str, charges: Mapping[str, int]) -> int:
        """Settle expired reservations at what they cost. Returns: how many there were."""
        prefix = prefix_of(organisation_id)
        done = 0
        for request_id, charge_pusd in charges.items():
            record = await self._command("GET", f"{prefix}:r:{request_id}")
            if record is None or record == b"done":
                await self._command("ZREM", f"{prefix}:leases", request_id)
                continue
            # "tokens requests hold owner", then generation and key of each budget.
            keys = tuple(key.decode() for key in record.split(b" ")[5::2])
            unnamed = tuple(Budget("", "", 0) for _ in keys)
            scopes = Scopes(prefix, (), (), unnamed, (0,) * len(keys), keys)
            done += await self.settle(request_id, scopes, tokens=0, charge_pusd=charge_pusd, orphan=True)
        return done

    async def _load_missing(self, scopes: Scopes) -> None:
        """Raises: Unavailable; the client may try again in a moment."""
        for at, key in enumerate(scopes.budget_keys):
            if (loading := self._loading.get(key)) is not None:
                # Whoever began need not live as long as we do: its cancellation is not ours.
                await asyncio.wait([loading])
                continue
            loading = self._loading[key] = asyncio.get_running_loop().create_future()
            try:
                await self.load_budget(scopes, at)
            finally:
                del self._loading[key]
                loading.set_result(None)

    async def _alone(self, scopes: Scopes) -> Sequence[str]:
        token, there = await self.called(scopes)
        if not there:
            await self.present(scopes, token)
        return (self._owner,)

    async def _run(
        self, op: str, request_id: str, scopes: Scopes, args: list[Arg] | Callable[[str], list[Arg]]
    ) -> Reply:
        """args: as the script wants them, or what makes them of the server's boot."""

        def command(boot: str, how: str = "EVALSHA", script: str = _SHA) -> tuple[Arg, ...]:
            said = args(boot) if callable(args) else args
            return (how, script, *self._words(op, boot, scopes, f"{scopes.prefix}:r:{request_id}", request_id), *said)

        try:
            try:
                return await self._link.call_booted(command, near=scopes.muster)
            except hiredis.ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            # A server that was restarted or flushed. EVAL also stores the script for the next one.
            return await self._link.call_booted(lambda boot: command(boot, "EVAL", _SCRIPT), near=scopes.muster)
        except hiredis.ReplyError as error:
            if str(error).startswith(_AWAY):
                raise LimitsAway("rate limit store refuses") from error
            raise

    async def _run_form(self, op: str, request_id: str, scopes: Scopes, of: str | None, values: Sequence[int]) -> Reply:
        """As `_run`, of what every request does: the command is packed once for all requests of the same scopes, but
        for the request's name and its values. of: what else differs, a lease's length or who answered."""

        command = self._formed(op, request_id, scopes, of, values)
        try:
            return await self._link.call_booted(command, near=scopes.muster)
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise LimitsAway("rate limit store refuses") if str(error).startswith(_AWAY) else error from error
        rest = iter(values)
        said = [next(rest) if arg == _HOLE else arg for arg in _FORMS[op](scopes, of)]
        return await self._run(op, request_id, scopes, said)

    def _formed(self, op: str, request_id: str, scopes: Scopes, of: str | None, values: Sequence[int]) -> Command:
        def command(boot: str) -> bytes:
            form = scopes.forms.get((op, boot, of))
            if form is None:
                words = self._words(op, boot, scopes, _HOLE, _HOLE)
                form = scopes.forms[op, boot, of] = _form("EVALSHA", _SHA, *words, *_FORMS[op](scopes, of))
            said = (f"{scopes.prefix}:r:{request_id}", request_id, *map(str, values))
            return form % tuple([_BULK % (len(data), data) for data in map(str.encode, said)])

        return command

    def _words(self, op: str, boot: str, scopes: Scopes, record: Arg, request_id: Arg) -> tuple[Arg, ...]:
        """Keys and arguments that every operation has."""
        prefix, keys = scopes.prefix, scopes.keys
        counts = len(scopes.buckets), len(scopes.slots), len(scopes.budgets)
        names = record, f"{prefix}:leases", f"{prefix}:muster"
        return (len(keys) + 3, *names, *keys, op, request_id, *counts, boot, self._owner)

    async def _command(self, *command: Arg, near: str | None = None) -> Reply:
        try:
            return await self._link.call(*command, near=near)
        except hiredis.ReplyError as error:
            if str(error).startswith(_AWAY):
                raise LimitsAway("rate limit store refuses") from error
            raise


_HOLE: Final = "\0"
"""What differs by request, in a form."""
_BULK: Final = b"$%d\r\n%b\r\n"


def _form(*words: Arg) -> bytes:
    """For `%`, with the values as `_BULK` says them, in the order of the holes. Source: Redis serialization protocol
    specification, read 2026-11."""
    packed = []
    for word in words:
        data = str(word).encode()
        packed.append(b"%b" if word == _HOLE else (_BULK % (len(data), data)).replace(b"%", b"%%"))
    return b"*%d\r\n%b" % (len(words), b"".join(packed))


def _reserve_form(scopes: Scopes, of: str | None) -> list[Arg]:
    """of: how many ms a lease lasts."""
    args: list[Arg] = [of or LEASE_MS, RECORD_MS, _HOLE, _HOLE]
    for bucket in scopes.buckets:
        args += (bucket.limit, bucket.window_ms, 1 if bucket.unit == "requests" else _HOLE)
    args += [slot.limit for slot in scopes.slots]
    for budget in scopes.budgets:
        args += (budget.limit_pusd, _HOLE, budget.pace)
    return args


def _settled(tokens: int, requests: int, charge_pusd: int, orphan: bool) -> list[int]:
    """What fills the form below. Raises: ValueError."""
    if not 0 <= charge_pusd <= MAX_AMOUNT_PUSD:
        raise ValueError(f"charge of {charge_pusd} pUSD")
    return [tokens, requests, charge_pusd, int(orphan)]


def _settle_form(scopes: Scopes, of: str | None) -> list[Arg]:
    """of: the provider that answered."""
    args: list[Arg] = [_HOLE, _HOLE, _HOLE, DONE_MS, _HOLE]
    for bucket in scopes.buckets:
        unit = "r" if bucket.unit == "requests" else "t"
        args += (bucket.limit, bucket.window_ms, unit if _is_of(bucket, of) else unit + "0")
    args += [int(_is_of(budget, of)) for budget in scopes.budgets]
    return args


_FORMS: Final = {"reserve": _reserve_form, "settle": _settle_form}


def _is_of(scope: Limit | Budget, provider: str | None) -> bool:
    return provider is None or scope.scope != PROVIDER or scope.scope_id.partition("/")[2] == provider


def _refusal(reply: Reply, scopes: Scopes, tokens: int, hold_pusd: int) -> Exception:
    kind = reply[0]
    if kind == b"money":
        budget, remaining = scopes.budgets[int(reply[1]) - 1], int(reply[2])
        period = "" if budget.period == "total" else f" of this {budget.period}"
        return QuotaExceeded(
            f"the {budget.scope}'s budget{period} ({format_usd(budget.limit_pusd)} USD) has "
            f"{format_usd(max(0, remaining))} USD left; this request may cost up to {format_usd(hold_pusd)} USD",
            scope=budget.scope,
            scope_id=budget.scope_id,
            remaining_pusd=remaining,
            limit_pusd=budget.limit_pusd,
        )
    if kind == b"slow":
        budget = scopes.budgets[int(reply[1]) - 1]
        return RateLimited(
            f"the {budget.scope}'s budget of {format_usd(budget.limit_pusd)} USD is used up to where it slows down: "
            f"{budget.slow_rpm} requests a minute pass",
            retry_after_s=int(reply[2]) / 1000,
            scope=budget.scope,
            scope_id=budget.scope_id,
            unit="requests",
        )
    if kind == b"known":
        return ValueError("request id used twice")
    at = int(reply[1]) - 1
    if kind == b"parallel":
        limit = scopes.slots[at]
        return RateLimited(
            f"the {_owner(limit)} already has {limit.limit} requests running, which is its limit",
            retry_after_s=PARALLEL_RETRY_S,
            scope=limit.scope,
            scope_id=limit.scope_id,
            unit=limit.unit,
        )
    limit = scopes.buckets[at]
    window = "minute" if limit.window_ms == 60_000 else f"{limit.window_ms / 1000:g} s"
    if kind == b"never":
        wanted = f"{tokens} tokens" if limit.unit == "tokens" else "one"
        return RateLimited(
            f"the {_owner(limit)}'s limit is {limit.limit} {limit.unit} a {window}, and this request alone asks for "
            f"{wanted}: lower its maximum output, or have the limit raised",
            retry_after_s=limit.window_ms / 1000,
            scope=limit.scope,
            scope_id=limit.scope_id,
            unit=limit.unit,
            limit=limit.limit,
        )
    return RateLimited(
        f"the {_owner(limit)}'s limit of {limit.limit} {limit.unit} a {window} is reached",
        retry_after_s=int(reply[2]) / 1000,
        scope=limit.scope,
        unit=limit.unit,
        limit=limit.limit,
    )


def _owner(limit: Limit) -> str:
    return limit.scope.replace("_", " ")
