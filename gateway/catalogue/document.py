"""The part of the catalogue that lies in SQL, as one document, and how it joins what the settings say.

A document is changed whole: every change is a new version, and a version is good or it is not taken (faults.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import asdict, fields, replace

from gateway.config import Settings
from gateway.config_parts import Secret
from gateway.offered import (
    Alias,
    AliasTerms,
    DeploymentSettings,
    DeploymentTerms,
    ModelSettings,
    Name,
    ProbePath,
    ProbeSeconds,
    ProviderSettings,
)
from gateway.sections import Section

ProviderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""No slash and no @: both part what stands behind a provider's name."""


class ProviderEntry(Section, frozen=True):
    kind: Name
    """Which adapter speaks to it."""
    enabled: bool = True
    base_url: Annotated[str, Meta(max_length=2000)] | None = None
    region: Annotated[str, Meta(max_length=64)] | None = None
    credential: Name | None = None
    """Name of a stored credential. None: what the machine itself has, or none is needed."""
    options: dict[str, Any] = field(default_factory=dict)
    allow_private: bool = False
    """`base_url` may lead into our own network: an engine of one's own, an emulator."""
    replicas: bool = False
    """Engines join it by themselves, with the token of the setting `replicas.token`; it has no address of its own."""
    probe_s: ProbeSeconds | None = None
    """How often it is asked, at no cost, whether it is there. None: only requests find out."""
    probe_path: ProbePath | None = None
    """What is asked for, from the host's root on. None: its list of models."""


class DeploymentEntry(DeploymentTerms, frozen=True, kw_only=True):
    credential: Name | None = None
    """Name of a stored credential, in place of the provider's."""

    @property
    def place(self) -> str:
        return f"{self.provider}/{self.model}" + (f"@{self.credential}" if self.credential else "")


class Target(Section, frozen=True):
    """One of an alias' deployments. deployment: a deployment's name, or `provider/model`."""

    deployment: Name
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    priority: Annotated[int, Meta(ge=0, le=1000)] = 0


class AliasEntry(AliasTerms, frozen=True, kw_only=True):
    targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=100)]


Kind = Literal["providers", "deployments", "aliases"]
Entry = ProviderEntry | DeploymentEntry | AliasEntry


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """By name."""

    providers: dict[ProviderName, ProviderEntry] = {}
    deployments: dict[Name, DeploymentEntry] = {}
    aliases: dict[Alias, AliasEntry] = {}

    def of(self, kind: Kind) -> Mapping[str, Entry]:
        found: Mapping[str, Entry] = getattr(self, kind)
        return found

    def with_entry(self, kind: Kind, name: str, entry: Entry | None) -> Document:
        """The same with this one; None takes it out."""
        kept = {each: said for each, said in self.of(kind).items() if each != name}
        return replace(self, **{kind: kept if entry is None else {**kept, name: entry}})


EMPTY = Document()
Credentials = Mapping[str, Mapping[str, Secret]]
"""Stored credentials, opened: name -> field -> value or reference."""


def encode(document: Document) -> bytes:
    return msgspec.json.encode(document, order="deterministic")


def decode(data: bytes) -> Document:
    """Raises: msgspec.ValidationError for what a newer version wrote."""
    return msgspec.json.decode(data, type=Document)


def etag(entry: Entry) -> str:
    """Another one whenever the entry is another one."""
    return hashlib.sha256(msgspec.json.encode(entry, order="deterministic")).hexdigest()[:20]


def plain(entry: Entry | None) -> dict[str, Any] | None:
    """For the audit: what was said, defaults left out, no floats."""
    if entry is None:
        return None
    said = {
        each.name: value
        for each in fields(entry)
        if (value := getattr(entry, each.name)) != each.default and not (value == {} or value == ())
    }
    built: dict[str, Any] = msgspec.to_builtins(said, str_keys=True, order="deterministic")
    return {name: _no_floats(value) for name, value in built.items()}


def merged(settings: Settings, document: Document, credentials: Credentials) -> Settings:
    """Both as one. The document has no faults (faults.py): every name that it speaks of is there."""
    providers = {name: _provider(entry, credentials) for name, entry in document.providers.items()}
    deployments = {name: _deployment(entry, credentials) for name, entry in document.deployments.items()}
    by_place = {each.place: each for each in (*settings.deployments, *deployments.values())}

    def placed(target: Target) -> DeploymentSettings:
        said = deployments.get(target.deployment) or by_place.get(target.deployment)
        if said is None:
            provider, _, model = target.deployment.partition("/")
            said = DeploymentSettings(provider=provider, model=model)
        return replace(said, weight=target.weight, priority=target.priority)

    models = tuple(
        ModelSettings(alias=alias, deployments=tuple(map(placed, entry.targets)), **_shared(entry, AliasTerms))
        for alias, entry in document.aliases.items()
    )
    return replace(
        settings,
        providers={**settings.providers, **providers},
        deployments=(*settings.deployments, *deployments.values()),
        models=(*settings.models, *models),
    )


def _provider(entry: ProviderEntry, credentials: Credentials) -> ProviderSettings:
    fields_ = dict(credentials[entry.credential]) if entry.credential else {}
    return ProviderSettings(
        kind=entry.kind,
        enabled=entry.enabled,
        base_url=entry.base_url,
        region=entry.region,
        credential=fields_,
        options=entry.options,
        replicas=entry.replicas,
        probe_s=entry.probe_s,
        probe_path=entry.probe_path,
    )


def _deployment(entry: DeploymentEntry, credentials: Credentials) -> DeploymentSettings:
    account = entry.credential
    own = dict(credentials[account]) if account else {}
    return DeploymentSettings(account=account, credential=own, **_shared(entry, DeploymentTerms))


def _shared(entry: Struct, parent: type[Struct]) -> dict[str, Any]:
    said = asdict(entry)
    return {name: said[name] for name in parent.__struct_fields__}


def _no_floats(value: Any) -> Any:
    match value:
        case bool():
            return value
        case float():
            return repr(value)
        case dict():
            return {name: _no_floats(each) for name, each in value.items()}
        case list():
            return [_no_floats(each) for each in value]
    return value
