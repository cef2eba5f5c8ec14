"""A guardrail as an administrator sets it: whom it concerns, when it looks, what it looks for and what follows.

Of a request's guardrails those for all come first, then its organisation's, its project's, its key's; within a scope as
their `position` says. What looks here comes before what asks somebody else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.guardrails import detectors
from gateway.guardrails.patterns import Detector
from gateway.guardrails.screening import Action

Scope = Literal["all", "organisation", "project", "key"]
Stage = Literal["input", "output", "both"]
SCOPES: Final[tuple[Scope, ...]] = ("all", "organisation", "project", "key")
ALL: Final = "*"
"""The id of the scope `all`."""

_Patterns = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...], Meta(max_length=100)]
_Globs = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=500)]
_Timeout = Annotated[float, Meta(gt=0, le=30)]
OnFailure = Literal["open", "closed"]


class _Said(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """The base of each kind: a misspelt name is refused."""


class Patterns(_Said, frozen=True, kw_only=True, tag="patterns"):
    """Regular expressions. label: what stands in place of a match, in capitals and brackets."""

    patterns: _Patterns
    ignore_case: bool = True
    label: Annotated[str, Meta(pattern="^[A-Za-z0-9_ -]{1,40}$")] = "redacted"


class Pii(_Said, frozen=True, kw_only=True, tag="pii"):
    """Personal data and credentials by their look and, where they have one, their checksum."""

    detectors: tuple[str, ...] = detectors.NAMES


class Topics(_Said, frozen=True, kw_only=True, tag="topics"):
    """deny: a text that matches one is stopped. allow: a prompt whose last message of the user matches none is."""

    deny: _Patterns = ()
    allow: _Patterns = ()


class Tools(_Said, frozen=True, kw_only=True, tag="tools"):
    """Which tools a request may declare, by globs of their names, and how many. Action redact: others are left out."""

    allow: _Globs = ("*",)
    deny: _Globs = ()
    most: Annotated[int, Meta(ge=0)] | None = None


class Remote(_Said, frozen=True, kw_only=True):
    """Somebody else is asked. on_failure: what becomes of the request if nobody answers in time. every: an answer that
    streams is held back until so many characters of it can be shown at once."""

    timeout_s: _Timeout = 3.0
    on_failure: OnFailure = "closed"
    every: Annotated[int, Meta(ge=50, le=20_000)] = 600


class Webhook(Remote, frozen=True, kw_only=True, tag="webhook"):
    """A service of your own; README.md has the request and the answer."""

    url: Annotated[str, Meta(pattern="^https?://[^@]+$", max_length=2000)]


class Bedrock(Remote, frozen=True, kw_only=True, tag="bedrock"):
    """ApplyGuardrail of Amazon Bedrock, asked with the region and keys of a configured provider."""

    guardrail_id: Annotated[str, Meta(pattern="^[A-Za-z0-9:/._-]{1,2048}$")]
    version: Annotated[str, Meta(pattern="^(DRAFT|[1-9][0-9]{0,7})$")] = "DRAFT"
    provider: str = "bedrock"


class AzureSafety(Remote, frozen=True, kw_only=True, tag="azure"):
    """text:analyze of Azure AI Content Safety at a configured resource. severity: from which level on a category is
    reported, 0 to 7."""

    provider: str = "azure_ai"
    severity: Annotated[int, Meta(ge=0, le=7)] = 4
    categories: tuple[Literal["Hate", "SelfHarm", "Sexual", "Violence"], ...] = (
        "Hate",
        "SelfHarm",
        "Sexual",
        "Violence",
    )
    blocklists: tuple[str, ...] = ()


Spec = Patterns | Pii | Topics | Tools | Webhook | Bedrock | AzureSafety
REMOTE: Final = (Webhook, Bedrock, AzureSafety)
# Kinds that do not say where in a text they have found something cannot take it out.
_ACTIONS: Final[Mapping[type, tuple[Action, ...]]] = {Topics: ("block", "flag"), AzureSafety: ("block", "flag")}


class Rule(Struct, frozen=True):
    """One guardrail. message: what a client is told whose request is blocked."""

    id: str
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    scope: Scope
    scope_id: str
    stage: Stage
    action: Action
    spec: Spec
    position: int = 0
    enabled: bool = True
    message: str | None = None

    @property
    def order(self) -> tuple[int, int, str]:
        return SCOPES.index(self.scope), self.position, self.id

    @property
    def kind(self) -> str:
        return str(type(self.spec).__struct_config__.tag)

    def looks_at(self, stage: Literal["input", "output"]) -> bool:
        return self.stage in (stage, "both")


def spec_of(said: Any) -> Spec:
    """From JSON. Raises: ValueError that names what is wrong."""
    try:
        spec: Spec = msgspec.convert(said, Spec)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return spec


def spec_from_text(text: str) -> Spec:
    """Raises: ValueError."""
    try:
        return spec_of(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


def detectors_of(spec: Spec) -> tuple[Detector, ...]:
    """Of a kind that looks for something in texts. Raises: ValueError naming the pattern."""
    match spec:
        case Patterns():
            return detectors.of_patterns(spec.patterns, spec.label, ignore_case=spec.ignore_case)
        case Pii():
            return detectors.named(spec.detectors)
        case Topics():
            return detectors.of_patterns(spec.deny, "topic", ignore_case=True)
    return ()


def check(rule: Rule) -> None:
    """Raises: ValueError with what to change."""
    spec = rule.spec
    if rule.action not in _ACTIONS.get(type(spec), ("redact", "block", "flag")):
        raise ValueError(f"{rule.kind} does not redact: choose block or flag")
    if (rule.scope == "all") != (rule.scope_id == ALL):
        raise ValueError(f"scope all has the id {ALL!r}, and no other scope has")
    match spec:
        case Patterns() if not spec.patterns:
            raise ValueError("patterns: give one at least")
        case Pii() if not spec.detectors:
            raise ValueError(f"detectors: give one at least of {', '.join(detectors.NAMES)}")
        case Topics():
            if not (spec.deny or spec.allow):
                raise ValueError("topics: give deny or allow")
            if spec.allow and rule.stage != "input":
                raise ValueError("allow looks at prompts alone: stage input")
            detectors.of_patterns(spec.allow, "topic", ignore_case=True)
        case Tools() if rule.stage != "input":
            raise ValueError("tools are declared in requests: stage input")
    detectors_of(spec)
