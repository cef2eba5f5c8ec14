"""LiteLLM's proxy config.yaml as settings of ours. Pure; no secret of it is copied, only where each can be read.

Source: docs.litellm.ai, "All settings" and "Proxy configs", and litellm_params of the router; read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from gateway.config import PUSD_DIGITS, UNIT_DIGITS
from gateway.moving.report import Report

# Their provider prefix -> our adapter. Those that only differ by address are `openai_like`.
KINDS: Final = {
    "openai": "openai", "text-completion-openai": "openai", "azure": "azure_ai", "azure_ai": "azure_ai",
    "azure_text": "azure_ai", "anthropic": "anthropic", "anthropic_text": "anthropic", "bedrock": "bedrock",
    "bedrock_converse": "bedrock", "bedrock_mantle": "bedrock_openai", "sagemaker": "sagemaker",
    "sagemaker_chat": "sagemaker", "vertex_ai": "vertex", "vertex_ai_beta": "vertex", "gemini": "gemini",
    "groq": "groq", "cerebras": "cerebras", "cohere": "cohere",
    "cohere_chat": "cohere", "mistral": "mistral", "deepseek": "deepseek", "fireworks_ai": "fireworks",
    "together_ai": "together", "xai": "xai", "openrouter": "openrouter", "perplexity": "perplexity",
    "moonshot": "moonshotai", "nvidia_nim": "nvidia_nim",
    "hosted_vllm": "openai_like", "vllm": "openai_like", "openai_like": "openai_like", "lm_studio": "openai_like",
    "llamafile": "openai_like", "litellm_proxy": "openai_like", "custom_openai": "openai_like",
    "xinference": "openai_like",
    "ollama": "openai_like", "ollama_chat": "openai_like", "docker_model_runner": "openai_like",
}  # fmt: skip
_LOCAL_V1: Final = ("ollama", "ollama_chat")  # LiteLLM speaks their own API; their OpenAI-like one is below /v1.

STRATEGIES: Final = {
    "simple-shuffle": "weighted",
    "least-busy": "least_busy",
    "usage-based-routing": "most_quota",
    "usage-based-routing-v2": "most_quota",
    "latency-based-routing": "lowest_latency",
    "cost-based-routing": "lowest_cost",
}

# Their price -> our name for it; a price of a token is told by the million.
_TOKEN_PRICES: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
}
_UNIT_PRICES: Final = {
    "input_cost_per_second": "seconds",
    "output_cost_per_second": "seconds",
    "input_cost_per_character": "characters",
    "input_cost_per_image": "images",
    "output_cost_per_image": "images",
    "input_cost_per_query": "search_units",
}
_CREDENTIALS: Final = {
    "api_key": "api_key",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "tenant_id": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "vertex_credentials": "credentials_file",
}
_ADDRESS: Final = frozenset({"model", "api_base", "base_url", "api_version", "aws_region_name", "region_name",
                             "vertex_project", "vertex_location", "custom_llm_provider", "litellm_credential_name",
                             "organization", "aws_bedrock_runtime_endpoint"})  # fmt: skip
_NAME: Final = re.compile(r"[^A-Za-z0-9._:/@-]+")
_ALIAS: Final = re.compile(r"^(\*|[A-Za-z0-9][A-Za-z0-9._:/@-]*)$")

_ELSEWHERE: Final = {
    "master_key": "people sign in by the link that `farebox up` prints, programs by API tokens",
    "database_url": "Farebox has a database of its own: DATABASE_URL",
    "alerting": "`farebox alerts add` (webhook, Slack, e-mail)",
    "alerting_threshold": "routing.slow_first_token_s takes slow deployments out",
    "callbacks": "metrics are at /metrics, single requests in `farebox export usage` and the dashboard",
    "success_callback": "metrics are at /metrics, single requests in `farebox export usage` and the dashboard",
    "failure_callback": "metrics are at /metrics, single requests in `farebox export usage` and the dashboard",
    "service_callbacks": "metrics are at /metrics",
    "allowed_fails": "each deployment has a breaker of its own that needs no numbers",
    "cooldown_time": "each deployment has a breaker of its own that needs no numbers",
    "disable_cooldowns": "each deployment has a breaker of its own",
    "allowed_fails_policy": "each deployment has a breaker of its own that needs no numbers",
    "retry_policy": "routing.retries, and only before the first token; the client's own mistakes are never repeated",
    "redis_host": "REDIS_URL, or the Valkey that `farebox up` brings along",
    "redis_port": "REDIS_URL",
    "redis_password": "REDIS_URL",
    "redis_url": "REDIS_URL, or the Valkey that `farebox up` brings along",
    "enable_pre_call_checks": "always on: a prompt that does not fit goes to a deployment where it does",
    "store_prompts_in_spend_logs": "bodies are not logged unless a project says so",
    "set_verbose": "log.level",
    "json_logs": "log.format",
    "drop_params": "strict",
    "default_team_settings": "set limits with `farebox quotas`",
}


def convert(config: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Returns: a tree that `gateway.config` reads."""
    return _Conversion(config, report).tree()


class _Conversion:
    def __init__(self, config: Mapping[str, Any], report: Report) -> None:
        self._config = config
        self._report = report
        self._providers: dict[str, dict[str, Any]] = {}
        self._models: dict[str, dict[str, Any]] = {}
        self._shared = {
            str(each.get("credential_name")): _dict(each.get("credential_values"))
            for each in _list(config.get("credential_list"))
        }
        # Some settings may stand in either section; the router's own word wins.
        self._litellm = _dict(config.get("litellm_settings"))
        self._router = _dict(config.get("router_settings"))

    def tree(self) -> dict[str, Any]:
        for entry in _list(self._config.get("model_list")):
            self._model(entry)
        self._fallbacks()
        self._aliases()
        tree: dict[str, Any] = self._settings()
        tree |= {"providers": self._providers} if self._providers else {}
        tree |= {"models": [{"alias": alias} | said for alias, said in self._models.items()]} if self._models else {}
        self._rest()
        return tree

    # Models

    def _model(self, entry: dict[str, Any]) -> None:
        alias = str(entry.get("model_name", ""))
        params = _dict(entry.get("litellm_params"))
        named = params.get("litellm_credential_name")
        params = self._shared.get(str(named), {}) | params
        info = _dict(entry.get("model_info"))
        prefix, model = _split(params)
        what = f"model {alias} -> {params.get('model')}"
        if "*" in alias and alias != "*":
            self._report.change(
                what, f"every priced model of a provider is there as provider/model; {alias} needs no line"
            )
            self._provider(prefix, params, what)
            return
        if not _ALIAS.match(alias):
            alias = _NAME.sub("-", alias).strip("-") or "model"
            self._report.change(what, f"called {alias} now: our names have no spaces and signs")
        provider = self._provider(prefix, params, what)
        if provider is None:
            return
        deployment: dict[str, Any] = {"provider": provider, "model": model}
        deployment |= self._weight(params)
        for theirs, ours in (("max_input_tokens", "context_window"), ("max_output_tokens", "max_output_tokens")):
            if isinstance(limit := info.get(theirs), int) and limit > 0:
                deployment[ours] = limit
        if price := self._price(params | info, what):
            deployment["price"] = price
        elif info.get("base_model"):
            base = info["base_model"]
            self._report.change(what, f"had the price of {base}: where it is refused as unpriced, `farebox prices set`")
        self._models.setdefault(alias, {"deployments": []})["deployments"].append(deployment)
        self._report.carry(what, f"{provider}/{model}")
        self._unsaid(params, info)

    def _weight(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """simple-shuffle picks by weight, or else by rpm, or else by tpm."""
        said: dict[str, Any] = {}
        for name, divisor in (("weight", 1), ("rpm", 1), ("tpm", 1000)):
            if isinstance(value := params.get(name), int | float) and value > 0:
                said["weight"] = min(1_000_000, max(1, round(value / divisor)))
                if name != "weight":
                    self._report.change(
                        f"{name} of deployments",
                        f"taken as their weight; a provider's own limit is met by its 429, or set with `farebox quotas "
                        f"limit provider ORGANISATION/PROVIDER {'requests' if name == 'rpm' else 'tokens'} N`",
                    ) if not any(note.what == f"{name} of deployments" for note in self._report.changed) else None
                break
        if isinstance(order := params.get("order"), int) and 0 <= order <= 1000:
            said["priority"] = order
        if isinstance(parallel := params.get("max_parallel_requests"), int) and parallel > 0:
            said["max_parallel"] = min(parallel, 100_000)
        return said

    def _price(self, said: Mapping[str, Any], what: str) -> dict[str, Any]:
        price: dict[str, Any] = {}
        for theirs, ours in _TOKEN_PRICES.items():
            amount = _decimal(said.get(theirs))
            if amount is not None:
                price[ours] = self._exact(amount * 10**6, PUSD_DIGITS, f"{what}: {theirs}")
        per = {}
        for theirs, unit in _UNIT_PRICES.items():
            amount = _decimal(said.get(theirs))
            if amount:
                per[unit] = self._exact(amount, UNIT_DIGITS, f"{what}: {theirs}")
        if ("input" in price) != ("output" in price):
            # An embedder has no output; the price book wants both said.
            price.setdefault("input", "0")
            price.setdefault("output", "0")
        return price | ({"per": per} if per else {})

    def _exact(self, amount: Decimal, digits: int, what: str) -> str:
        rounded = amount.quantize(Decimal(1).scaleb(-digits), rounding="ROUND_UP")
        if rounded != amount:
            self._report.change(what, f"{amount} USD rounded up to {rounded}: prices are whole pico-dollars")
        text = f"{rounded:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text

    def _unsaid(self, params: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        known = {*_CREDENTIALS, *_ADDRESS, *_TOKEN_PRICES, *_UNIT_PRICES, "weight", "rpm", "tpm", "order",
                 "max_parallel_requests"}  # fmt: skip
        why = {
            "timeout": "timeouts are one setting for all: [timeouts]",
            "stream_timeout": "timeouts.first_byte_s",
            "max_retries": "routing.retries",
            "num_retries": "routing.retries",
            "tags": "give teams models of their own: `farebox keys create --models`",
            "mock_response": "no such thing here",
        }
        for name in sorted(params.keys() - known):
            self._report.leave(f"litellm_params.{name}", why.get(name, "clients send it themselves, or not at all"))

    # Providers

    def _provider(self, prefix: str, params: Mapping[str, Any], what: str) -> str | None:
        """The section that this deployment belongs to, made if it is new. None: nobody here speaks to it."""
        kind = KINDS.get(prefix)
        address = str(
            params.get("api_base") or params.get("base_url") or params.get("aws_bedrock_runtime_endpoint") or ""
        )
        if kind == "openai" and address and not _environ(address) and "api.openai.com" not in address:
            kind = "openai_like"
        if kind is None and address:
            kind = "openai_like"
            self._report.change(what, f"provider {prefix} is reached as an OpenAI-like server at its address")
        if kind is None:
            self._report.leave(what, f"no adapter for {prefix}; if it speaks OpenAI's dialect, give it as openai_like")
            return None
        section: dict[str, Any] = {"kind": kind}
        if address:
            section["base_url"] = self._address(address, prefix, what)
        region = params.get("aws_region_name") or params.get("region_name") or params.get("vertex_location")
        if region:
            section["region"] = self._said(region, "region", what)
        credential = {}
        for theirs, ours in _CREDENTIALS.items():
            if params.get(theirs):
                credential[ours] = self._reference(str(params[theirs]), kind, theirs)
        if credential:
            section["credential"] = credential
        options = {"host": "mantle"} if prefix == "bedrock_mantle" else {}
        for theirs, ours in (
            ("vertex_project", "project"),
            ("api_version", "api_version"),
            ("organization", "organization"),
        ):
            if params.get(theirs):
                options[ours] = self._said(params[theirs], theirs, what)
        if options:
            section["options"] = options
        for name, known in self._providers.items():
            if known == section:
                return name
        name, n = kind, 1
        while name in self._providers:
            n += 1
            name = f"{kind}-{n}"
        self._providers[name] = section
        self._report.carry(f"provider {prefix}", f"[providers.{name}]")
        return name

    def _address(self, address: str, prefix: str, what: str) -> str:
        address = self._said(address, "api_base", what).rstrip("/")
        if prefix in _LOCAL_V1 and not address.endswith("/v1"):
            address += "/v1"
        return address

    def _said(self, value: Any, name: str, what: str) -> str:
        """A value that is no secret, and stands in our file as it is."""
        if variable := _environ(value):
            self._report.change(
                f"{what}: {name}", f"LiteLLM read it from {variable}; write its value in place of ${{{variable}}}"
            )
            return f"${{{variable}}}"
        return str(value)

    def _reference(self, value: str, kind: str, name: str) -> str:
        if variable := _environ(value):
            return f"env:{variable}"
        if name == "vertex_credentials" and not value.lstrip().startswith("{"):
            return f"file:{value}"
        variable = f"{kind}_{name}".upper()
        variable = variable.replace("_AWS_", "_")
        self._report.change(
            f"{name} of {kind} in clear text", f"not copied: export it as {variable}, or name a file with file:/path"
        )
        return f"env:{variable}"

    # Routing

    def _fallbacks(self) -> None:
        """Ours are deployments of the same alias that are tried later."""
        for source in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
            for pair in _list(self._router.get(source) or self._litellm.get(source)):
                for alias, others in pair.items():
                    self._fall_back(str(alias), [str(other) for other in _list(others)], source)
        everywhere = _list(self._router.get("default_fallbacks") or self._litellm.get("default_fallbacks"))
        for alias in [name for name in self._models if everywhere]:
            self._fall_back(alias, [str(each) for each in everywhere if each != alias], "default_fallbacks")

    def _fall_back(self, alias: str, others: list[str], source: str) -> None:
        what = f"{source} {alias} -> {', '.join(others)}"
        mine = self._models.get(alias)
        if mine is None or not others:
            if others:
                self._report.leave(what, f"there is no model {alias}")
            return
        last = max(each.get("priority", 0) for each in mine["deployments"])
        for other in others:
            theirs = self._models.get(other)
            if theirs is None:
                self._report.leave(what, f"there is no model {other}")
                continue
            last += 1
            own = [each for each in theirs["deployments"] if "fallback" not in each]
            places = {(each["provider"], each["model"]) for each in mine["deployments"]}
            mine["deployments"] += [
                each | {"priority": last} for each in own if (each["provider"], each["model"]) not in places
            ]
        if source == "content_policy_fallbacks":
            mine["fallback_on"] = ["content_filter"]
            self._report.change(what, "asked after an outage as well as after a refusal")
        elif source == "context_window_fallbacks":
            self._report.change(what, "asked after an outage as well as for too long a prompt")
        else:
            self._report.carry(what, "later priorities of the same alias")

    def _aliases(self) -> None:
        for alias, said in _dict(self._router.get("model_group_alias")).items():
            target = said.get("model") if isinstance(said, dict) else said
            if target in self._models and alias not in self._models:
                self._models[str(alias)] = dict(self._models[str(target)])
                self._report.carry(f"alias {alias} -> {target}", "a model of its own with the same deployments")
            else:
                self._report.leave(f"alias {alias} -> {target}", f"there is no model {target}")

    # Settings

    def _settings(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        if (said := self._router.get("routing_strategy")) is not None:
            strategy = STRATEGIES.get(str(said))
            if strategy is None:
                self._report.leave(f"routing_strategy {said}", f"one of {', '.join(sorted(set(STRATEGIES.values())))}")
            else:
                for model in self._models.values():
                    model["strategy"] = strategy
                self._report.carry(f"routing_strategy {said}", f"strategy {strategy} of every model")
        timeout = self._number(self._router.get("timeout") or self._litellm.get("request_timeout"))
        if timeout:
            tree["timeouts"] = {"total_s": timeout}
            self._report.carry("request_timeout", "timeouts.total_s")
        retries = self._number(self._router.get("num_retries") or self._litellm.get("num_retries"))
        if retries is not None:
            tree["routing"] = {"retries": min(5, int(retries))}
            self._report.carry("num_retries", "routing.retries, at most 5, before the first token only")
        if self._litellm.get("drop_params") is True:
            tree["strict"] = False
            self._report.carry("drop_params", "strict = false; what is left out is named in x-farebox-dropped")
        if self._litellm.get("cache") is True:
            self._cache(_dict(self._litellm.get("cache_params")))
        return tree

    def _cache(self, params: Mapping[str, Any]) -> None:
        if "semantic" in str(params.get("type", "")) or params.get("mode") == "default_off":
            why = "only the very same question is answered from memory: keep_answers_s of a model"
            self._report.leave(f"cache {params.get('type', '')}".strip(), why)
            return
        seconds = self._number(params.get("ttl")) or 600
        for model in self._models.values():
            model["keep_answers_s"] = seconds
        self._report.change("cache", f"keep_answers_s = {seconds:g} of every model; kept for each project by itself")

    def _number(self, value: Any) -> float | int | None:
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None

    def _rest(self) -> None:
        """Whatever nobody above has looked at is said, by name."""
        taken = {"fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks", "cache",
                 "cache_params", "drop_params", "request_timeout", "num_retries", "timeout", "routing_strategy",
                 "model_group_alias"}  # fmt: skip
        for section in ("litellm_settings", "router_settings", "general_settings"):
            for name in _dict(self._config.get(section)):
                if name not in taken:
                    self._report.leave(
                        f"{section}.{name}", _ELSEWHERE.get(name, "nothing here does the same by a setting")
                    )
        known = {"model_list", "litellm_settings", "router_settings", "general_settings", "credential_list"}
        why = {
            "environment_variables": "export them where Farebox starts; secrets belong in no file of settings",
            "include": "import the included files by themselves",
            "guardrails": "set them anew: `farebox guardrails`",
            "mcp_servers": "Farebox passes tool calls through and runs none",
        }
        for name in self._config:
            if name not in known:
                self._report.leave(str(name), why.get(str(name), "nothing here does the same by a setting"))


def _split(params: Mapping[str, Any]) -> tuple[str, str]:
    """Provider and model out of `provider/model`; a name without one goes by what it looks like."""
    said = str(params.get("model", ""))
    prefix, slash, model = said.partition("/")
    given = str(params.get("custom_llm_provider") or "")
    if given:
        return given, model if slash and prefix == given else said
    if slash and (prefix in KINDS or not _looks_known(said)):
        # bedrock/converse/..., bedrock/us-east-1/...: what comes before the model's own id is routing.
        if prefix == "bedrock":
            model = re.sub(r"^(?:converse(?:_like)?|invoke|[a-z]{2}(?:-[a-z]+)+-[0-9])/", "", model)
        return prefix, model
    return _guess(said), said


def _looks_known(name: str) -> bool:
    return name.startswith(("gpt-", "o1", "o3", "o4", "claude-", "gemini-", "text-embedding-"))


def _guess(name: str) -> str:
    if name.startswith("claude-"):
        return "anthropic"
    return "vertex_ai" if name.startswith("gemini-") else "openai"


def _environ(value: Any) -> str | None:
    return str(value).removeprefix("os.environ/") if str(value).startswith("os.environ/") else None


def _decimal(value: Any) -> Decimal | None:
    """Of a float the shortest digits that mean it: 1.5e-07 is what the operator wrote."""
    if value is None or isinstance(value, bool):
        return None
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        return None
    return found if found.is_finite() and found >= 0 else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
