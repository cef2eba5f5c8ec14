"""What is wrong with a catalogue: every fault with its place and what to do. Looks, and changes nothing.

`faults` asks nobody; `address_fault` resolves a name and `secret_faults` may ask a secret manager: both block.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from gateway.catalogue.document import AliasEntry, Credentials, DeploymentEntry, Document, ProviderEntry
from gateway.config import PUSD_DIGITS, UNIT_DIGITS, ConfigError, Settings, is_price
from gateway.offered import PriceSettings
from providers.base import Credential, Endpoint, checked_base_url
from providers.registry import class_of, names
from providers.transport.base import HttpRequest, HttpResponse, Timeouts
from providers.transport.fetching import is_public

LOCAL = "local"
_REPLICAS = "http://a-replica.invalid/v1"
"""Stands for the addresses that replicas will tell."""


class Fault(Struct, frozen=True):
    """path: as `providers.east.base_url`. todo: what to do about it."""

    path: str
    problem: str
    todo: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.todo}"


def faults(settings: Settings, document: Document, credentials: Credentials) -> list[Fault]:
    """settings: the file's part alone. Empty: the two can be merged, and every adapter can be made."""
    providers = {**dict.fromkeys(settings.providers), LOCAL: None, **dict.fromkeys(document.providers)}
    found: list[Fault] = []
    for name, provider in document.providers.items():
        found += _provider(name, provider, settings, credentials)
    places: dict[str, str] = {}
    for name, deployment in document.deployments.items():
        found += _deployment(name, deployment, providers, credentials)
        if (other := places.setdefault(deployment.place, name)) != name:
            todo = "change that one, or give this one a credential of its own"
            found.append(Fault(f"deployments.{name}", f"{deployment.place} is there already, as {other!r}", todo))
        if "/" in name and name != deployment.place and name.partition("/")[0] in providers:
            todo = f"call it {deployment.place}, or without a slash"
            found.append(Fault(f"deployments.{name}", f"its name is another model's: it is {deployment.place}", todo))
    listed = {model.alias for model in settings.models}
    known_aliases = listed | set(document.aliases)
    for name, alias in document.aliases.items():
        if name in listed:
            found.append(_twice(f"aliases.{name}", "alias", name))
        found += _alias(name, alias, document, providers, known_aliases)
    return found


def secret_faults(document: Document, credentials: Credentials) -> list[Fault]:
    """Credentials in use that have no value now."""
    used = [(f"providers.{name}", entry.credential) for name, entry in document.providers.items() if entry.enabled]
    used += [(f"deployments.{name}", entry.credential) for name, entry in document.deployments.items()]
    found = []
    for path, name in used:
        for field, secret in credentials.get(name or "", {}).items():
            try:
                secret.reveal()
            except ConfigError as error:
                at = f"{path}.credential"
                found.append(Fault(at, f"{name}, field {field}: {error.problem}", error.fix or "store it anew"))
    return found


def address_fault(path: str, base_url: str | None, *, allow_private: bool) -> Fault | None:
    """Whether we would ask, with a credential in hand, something in our own network that nobody meant to name.

    Link-local addresses, where clouds tell machines their secrets, are refused whoever allows them."""
    if base_url is None:
        return None
    parts = urlsplit(base_url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        todo = "check the spelling, and that this machine can resolve it"
        return Fault(path, f"the host {parts.hostname!r} is not known here", todo)
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    if any(ip_address(each).is_link_local for each in addresses):
        return Fault(path, f"{parts.hostname} is a link-local address", "name the provider's own address")
    private = [each for each in addresses if not is_public(each)]
    if private and not allow_private:
        todo = "if it is an engine of yours, allow private addresses for this provider (allow_private)"
        return Fault(path, f"{parts.hostname} leads into a private network ({private[0]})", todo)
    return None


def without(document: Document, found: Iterable[Fault]) -> Document:
    """The same less every entry that a fault names."""
    for fault in found:
        kind, _, rest = fault.path.partition(".")
        for name in getattr(document, kind):
            if rest == name or rest.startswith(f"{name}."):
                document = document.with_entry(kind, name, None)  # type: ignore[arg-type]
    return document


def _provider(name: str, entry: ProviderEntry, settings: Settings, credentials: Credentials) -> Iterator[Fault]:
    path = f"providers.{name}"
    if name in settings.providers or name == LOCAL:
        yield _twice(path, "provider", name)
    if entry.kind == LOCAL:
        yield Fault(f"{path}.kind", "the local engine is no provider to add", "openai_like speaks to any engine")
        return
    fields: Mapping[str, str] = {}
    if entry.credential is not None:
        if entry.credential not in credentials:
            yield _no_credential(f"{path}.credential", entry.credential, credentials)
            return
        # Whether a value can be had is asked elsewhere; here only that there is one.
        fields = dict.fromkeys(credentials[entry.credential], "x")
    if entry.replicas and entry.base_url is not None:
        yield Fault(f"{path}.base_url", "its replicas say theirs", "leave it out")
    base_url = _REPLICAS if entry.replicas else entry.base_url
    endpoint = Endpoint(entry.kind, base_url, entry.region, Credential(fields), entry.options)
    yield from _unmade(path, endpoint)
    yield from _unprobed(path, entry.kind, entry.probe_s, entry.probe_path)


def file_faults(settings: Settings) -> list[Fault]:
    """Providers of a file that was edited while we run, whose adapter cannot be made."""
    found: list[Fault] = []
    for name, said in settings.providers.items():
        if said.enabled:
            fields = dict.fromkeys(said.credential, "x")
            base_url = _REPLICAS if said.replicas else said.base_url
            endpoint = Endpoint(said.kind or name, base_url, said.region, Credential(fields), said.options)
            found += _unmade(f"providers.{name}", endpoint)
            found += _unprobed(f"providers.{name}", endpoint.provider, said.probe_s, said.probe_path)
    return found


def _unprobed(path: str, kind: str, every_s: float | None, asked: str | None) -> Iterator[Fault]:
    if every_s is not None and not 1 <= every_s <= 86_400:
        yield Fault(f"{path}.probe_s", f"{every_s:g} is no pause", "seconds from 1 to a day")
    if asked is not None and not asked.startswith("/"):
        yield Fault(f"{path}.probe_path", f"{asked!r} is no path", "begin it with a slash, as /health")
    if every_s is not None and asked is None and kind in names() and not class_of(kind).lists_models:
        yield Fault(f"{path}.probe_path", f"{kind} has no list of models to ask for", "name a path that costs nothing")


def _unmade(path: str, endpoint: Endpoint) -> Iterator[Fault]:
    if endpoint.provider not in names():
        problem = f"no adapter is called {endpoint.provider!r}"
        yield Fault(f"{path}.kind", problem, _nearest(endpoint.provider, [each for each in names() if each != LOCAL]))
        return
    if "service_account_json" in endpoint.credential.fields:
        fields = {**endpoint.credential.fields, "service_account_json": "{}"}
        endpoint = replace(endpoint, credential=Credential(fields))
    try:
        if endpoint.base_url is not None:
            checked_base_url(endpoint.provider, endpoint.base_url)
        class_of(endpoint.provider)(endpoint, _Nobody(), Timeouts())
    except (ValueError, TypeError, KeyError) as error:
        text = str(error).removeprefix(f"{endpoint.provider}: ")
        about = next((each for each in ("base_url", "region", "project", "role_arn") if each in text), "options")
        yield Fault(f"{path}.{about}", text, f"give it its {about}")


def _deployment(
    name: str, entry: DeploymentEntry, providers: Mapping[str, Any], credentials: Credentials
) -> Iterator[Fault]:
    path = f"deployments.{name}"
    if entry.provider not in providers:
        yield Fault(
            f"{path}.provider", f"no provider is called {entry.provider!r}", _nearest(entry.provider, providers)
        )
    if entry.credential is not None and entry.credential not in credentials:
        yield _no_credential(f"{path}.credential", entry.credential, credentials)
    if entry.price is not None and entry.price_as is not None:
        yield Fault(f"{path}.price_as", "there is a price, too", "keep one of the two")
    for field, price in (("price", entry.price), ("cost", entry.cost)):
        yield from _price(f"{path}.{field}", price)


def _price(path: str, price: PriceSettings | None) -> Iterator[Fault]:
    if price is None:
        return
    missing = [name for name in ("input", "output") if getattr(price, name) is None]
    if missing and not (price.per and len(missing) == 2):
        yield Fault(path, f"{' and '.join(missing)} is missing", "USD per million tokens, or `per` a unit")
    listed: list[tuple[str, Decimal | None, int]] = [
        (name, getattr(price, name), PUSD_DIGITS) for name in PriceSettings.__struct_fields__ if name != "per"
    ]
    listed += [(f"per.{unit}", usd, UNIT_DIGITS) for unit, usd in price.per.items()]
    for name, value, digits in listed:
        if value is not None and not is_price(value, digits):
            yield Fault(f"{path}.{name}", f"{value} is no price", f"USD, not negative, at most {digits} decimals")


def _alias(
    name: str, entry: AliasEntry, document: Document, providers: Mapping[str, Any], aliases: set[str]
) -> Iterator[Fault]:
    path = f"aliases.{name}"
    for at, target in enumerate(entry.targets):
        if target.deployment in document.deployments:
            continue
        provider, slash, model = target.deployment.partition("/")
        if provider not in providers or not slash or not model:
            todo = _nearest(target.deployment, [*document.deployments, *(f"{each}/MODEL" for each in providers)])
            yield Fault(f"{path}.targets[{at}].deployment", f"no deployment is called {target.deployment!r}", todo)
    for at, fallback in enumerate(entry.fallbacks):
        if fallback == name:
            yield Fault(f"{path}.fallbacks[{at}]", "it is its own fallback", "name another alias")
        elif fallback not in aliases and fallback.partition("/")[0] not in providers:
            todo = _nearest(fallback, [*aliases, *(f"{each}/MODEL" for each in providers)])
            yield Fault(f"{path}.fallbacks[{at}]", f"no alias or deployment is called {fallback!r}", todo)
    if entry.similar_answers is not None and entry.keep_answers_s is None:
        yield Fault(f"{path}.similar_answers", "no answers are kept", "say for how long: keep_answers_s")
    if entry.shadow is not None and entry.shadow.model not in aliases:
        todo = _nearest(entry.shadow.model, aliases)
        yield Fault(f"{path}.shadow.model", f"no alias is called {entry.shadow.model!r}", todo)
    if (most := entry.max_request_usd) is not None and not (most.is_finite() and most > 0):
        yield Fault(f"{path}.max_request_usd", f"{most} is no ceiling", "USD above zero, or leave it out")
    if not (entry.second_usd.is_finite() and entry.second_usd >= 0):
        yield Fault(f"{path}.second_usd", f"{entry.second_usd} is no amount", "USD, not negative")


def _twice(path: str, what: str, name: str) -> Fault:
    return Fault(path, f"the settings have the {what} {name!r}, too", "take another name, or remove it from one place")


def _no_credential(path: str, name: str, known: Iterable[str]) -> Fault:
    return Fault(path, f"no credential is called {name!r}", _nearest(name, known, "store it first"))


def _nearest(word: str, known: Iterable[str], nothing: str = "add one first") -> str:
    listed = sorted(known)
    close = difflib.get_close_matches(word, listed, n=1)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(listed)}" if listed else nothing


class _Nobody:
    """A transport for adapters that are only made to see whether they can be."""

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> HttpResponse:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Holds nothing."""
