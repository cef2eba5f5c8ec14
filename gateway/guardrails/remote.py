"""Guardrails that are somebody else's: a webhook of your own, Amazon Bedrock, Azure AI Content Safety.

A webhook's address is written by an administrator, not by the operator of the network that we stand in: as with alerts
its host is resolved here, an address inside is refused unless the settings allow it, redirects are not followed.
Source: ApplyGuardrail in botocore 1.44 `bedrock-runtime`; REST reference "Text Operations - Analyze Text" 2024-09-01;
read 2026-11."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

import httpx
import msgspec
from msgspec import Struct, field

from gateway.alerting import SIGNATURE, NotDelivered, resolve, sign
from gateway.exchange import Providers
from gateway.guardrails.policy import AzureSafety, Bedrock, Rule, Webhook
from gateway.guardrails.visit import About, NoVerdict, Stage, Verdict
from gateway.till import GuardrailSettings
from providers.azure_ai import AzureAI
from providers.bedrock import Bedrock as BedrockProvider

T = TypeVar("T")

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
# What one request may hold: 25 text units of 1,000 characters; 10,000 characters.
_BEDROCK_CHARS: Final = 25_000
_AZURE_CHARS: Final = 10_000


class Remotes:
    """Close with `aclose`. providers: whose regions and keys the clouds' guardrails are asked with."""

    def __init__(self, providers: Providers | None, settings: GuardrailSettings) -> None:
        self._providers = providers
        self._settings = settings
        # No proxy of the environment and nothing kept alive: as in gateway.alerting.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=30.0, follow_redirects=False, trust_env=False, limits=limits)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def ask(self, rule: Rule, stage: Stage, texts: Sequence[str], about: About) -> Verdict:
        """See `gateway.guardrails.visit.Asker`."""
        match rule.spec:
            case Webhook():
                return await self._webhook(rule, rule.spec, stage, texts, about)
            case Bedrock():
                return await self._bedrock(rule.spec, stage, texts)
            case AzureSafety():
                return await self._azure(rule.spec, texts)
        raise NoVerdict(f"{rule.kind} asks nobody")

    async def _webhook(self, rule: Rule, spec: Webhook, stage: Stage, texts: Sequence[str], about: About) -> Verdict:
        body = msgspec.json.encode(
            {
                "type": "farebox.guardrail",
                "stage": stage,
                "guardrail": rule.id,
                "request_id": about.request_id,
                "organisation_id": about.organisation_id,
                "project_id": about.project_id,
                "key_id": about.key_id,
                "model": about.alias,
                "texts": list(texts),
            }
        )
        headers = {"content-type": "application/json", "user-agent": "farebox"}
        if self._settings.signing_secret is not None:
            headers[SIGNATURE] = sign(body, self._settings.signing_secret.reveal(), int(time.time()))
        url = httpx.URL(spec.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            address = await resolve(url.host, port, private=self._settings.private_targets)
        except NotDelivered as error:
            advice = str(error).replace("alerts.private_targets", "guardrails.private_targets")
            raise NoVerdict(advice) from error
        request = self._http.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={**headers, "host": url.netloc.decode()},
            extensions={"sni_hostname": url.host},
        )
        answer = await self._http.send(request, stream=True)
        try:
            if answer.status_code != 200:
                raise NoVerdict(f"answered {answer.status_code}")
            said = _read(await _bounded(answer), _Told)
        finally:
            await answer.aclose()
        match said.action:
            case "pass":
                return Verdict("passed", found=said.found, reason=said.reason)
            case "block":
                return Verdict("blocked", found=said.found or {"webhook": 1}, reason=said.reason)
        if said.texts is None:
            raise NoVerdict("redact without texts")
        return Verdict("redacted", tuple(said.texts), said.found or {"webhook": 1}, said.reason)

    async def _bedrock(self, spec: Bedrock, stage: Stage, texts: Sequence[str]) -> Verdict:
        provider = _provider(self._providers, spec.provider, BedrockProvider)
        source: Literal["INPUT", "OUTPUT"] = "INPUT" if stage == "input" else "OUTPUT"
        new, found, reason, edited = list(texts), dict[str, int](), None, False
        for places in _groups(texts, _BEDROCK_CHARS):
            shown = [texts[place] for place in places]
            body = await provider.apply_guardrail(spec.guardrail_id, spec.version, source, shown)
            said = _read(body, _Applied)
            if said.action != "GUARDRAIL_INTERVENED":
                continue
            reason = said.outputs[0].text if said.outputs else None
            actions = _assessed(said.assessments, found)
            if actions - {"ANONYMIZED", "NONE"} or len(said.outputs) != len(places):
                return Verdict("blocked", found=found or {"intervened": 1}, reason=reason)
            for place, output in zip(places, said.outputs, strict=True):
                new[place] = output.text
            edited = True
        if not edited:
            return Verdict("passed", found=found)
        return Verdict("redacted", tuple(new), found or {"anonymized": 1})

    async def _azure(self, spec: AzureSafety, texts: Sequence[str]) -> Verdict:
        provider = _provider(self._providers, spec.provider, AzureAI)
        whole = "\n".join(text for text in texts if text.strip())
        found: dict[str, int] = {}
        for at in range(0, len(whole), _AZURE_CHARS):
            body: dict[str, Any] = {
                "text": whole[at : at + _AZURE_CHARS],
                "categories": list(spec.categories),
                "outputType": "EightSeverityLevels",
            }
            if spec.blocklists:
                body |= {"blocklistNames": list(spec.blocklists), "haltOnBlocklistHit": False}
            said = _read(await provider.analyze_text(body), _Analyzed)
            for match in said.blocklistsMatch:
                name = f"blocklist {match.blocklistName}"
                found[name] = found.get(name, 0) + 1
            for each in said.categoriesAnalysis:
                if each.severity is not None and each.severity >= spec.severity:
                    found[each.category] = max(found.get(each.category, 0), each.severity)
        if not found:
            return Verdict("passed")
        return Verdict("blocked", found=found, reason=", ".join(sorted(found)))


def _provider(providers: Providers | None, name: str, kind: type[T]) -> T:
    try:
        provider = None if providers is None else providers.get(name)
    except KeyError:
        raise NoVerdict(f"no provider {name!r} is configured") from None
    if not isinstance(provider, kind):
        raise NoVerdict(f"the provider {name!r} is not of the kind that has this guardrail")
    return provider


def _groups(texts: Sequence[str], most: int) -> list[list[int]]:
    """Places of texts that say something, as many together as one request may hold. One longer than that goes alone,
    and its service says what it makes of it."""
    groups: list[list[int]] = []
    size = most
    for place, text in enumerate(texts):
        if not text.strip():
            continue
        if size + len(text) > most:
            groups.append([])
            size = 0
        groups[-1].append(place)
        size += len(text)
    return groups


def _assessed(value: Any, found: dict[str, int]) -> set[str]:
    """Every `action` in the assessments, whatever policy it stands under; what each was about is counted."""
    actions: set[str] = set()
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            continue
        if isinstance(action := each.get("action"), str):
            actions.add(action)
            name = str(each.get("type") or each.get("name") or "custom word")[:60]
            found[name] = found.get(name, 0) + 1
        for below in each.values():
            if isinstance(below, dict | list):
                actions |= _assessed(below, found)
    return actions


async def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise NoVerdict(f"answered with more than {ANSWER_BYTES_MAX} bytes")
    return body


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise NoVerdict(f"an answer that is not understood: {error}") from error


class _Told(Struct):
    action: Literal["pass", "redact", "block"]
    texts: list[str] | None = None
    reason: str | None = None
    found: dict[str, int] = field(default_factory=dict)


class _Output(Struct):
    text: str = ""


class _Applied(Struct):
    action: str
    outputs: list[_Output] = []
    assessments: Any = None


class _Match(Struct):
    blocklistName: str = ""  # noqa: N815 - the wire's own name, as below


class _Category(Struct):
    category: str
    severity: int | None = None


class _Analyzed(Struct):
    blocklistsMatch: list[_Match] = []  # noqa: N815
    categoriesAnalysis: list[_Category] = []  # noqa: N815
