"""Which providers the environment offers: credentials under the names that the providers' own SDKs read.

Pure functions of a given mapping; `config.py` alone reads the process's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class Rule(Struct, frozen=True):
    """How a provider is recognised in the environment. Each of `secrets` maps a credential field to its variables."""

    name: str
    secrets: dict[str, tuple[str, ...]]
    base_url: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    options: dict[str, tuple[str, ...]] = {}
    optional: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    """Settings without which the provider cannot be reached: then it is left out, with a note, and the start goes on,
    since variables such as AWS's are often there for another program."""


# Source: each provider's own SDK documentation of the variables it reads, read 2026-11.
DISCOVERED = (
    Rule(
        "openai",
        {"api_key": ("OPENAI_API_KEY",)},
        base_url=("OPENAI_BASE_URL",),
        options={"organization": ("OPENAI_ORG_ID",), "project": ("OPENAI_PROJECT_ID",)},
    ),
    Rule("anthropic", {"api_key": ("ANTHROPIC_API_KEY",)}, base_url=("ANTHROPIC_BASE_URL",)),
    Rule("groq", {"api_key": ("GROQ_API_KEY",)}, base_url=("GROQ_BASE_URL",)),
    Rule("deepseek", {"api_key": ("DEEPSEEK_API_KEY",)}),
    Rule("fireworks", {"api_key": ("FIREWORKS_API_KEY",)}),
    Rule("mistral", {"api_key": ("MISTRAL_API_KEY",)}),
    Rule("moonshotai", {"api_key": ("MOONSHOT_API_KEY",)}),
    Rule("nvidia_nim", {"api_key": ("NVIDIA_API_KEY",)}),
    Rule("openrouter", {"api_key": ("OPENROUTER_API_KEY",)}),
    Rule("perplexity", {"api_key": ("PERPLEXITY_API_KEY", "PPLX_API_KEY")}),
    Rule("together", {"api_key": ("TOGETHER_API_KEY",)}),
    Rule("xai", {"api_key": ("XAI_API_KEY",)}),
    Rule("cohere", {"api_key": ("CO_API_KEY", "COHERE_API_KEY")}),
    Rule("cerebras", {"api_key": ("CEREBRAS_API_KEY",)}, base_url=("CEREBRAS_BASE_URL",)),
    Rule(
        "gemini",
        {"api_key": ("GEMINI_API_KEY", "GOOGLE_API_KEY")},
        base_url=("GOOGLE_GEMINI_BASE_URL", "GEMINI_BASE_URL"),
    ),
    Rule(
        "vertex",
        {"credentials_file": ("GOOGLE_APPLICATION_CREDENTIALS",)},
        region=("GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"),
        options={"project": ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT")},
    ),
    Rule(
        "bedrock",
        {"api_key": ("AWS_BEARER_TOKEN_BEDROCK",)},
        base_url=("AWS_ENDPOINT_URL_BEDROCK_RUNTIME",),
        region=("AWS_REGION", "AWS_DEFAULT_REGION"),
        needs=("region",),
    ),
    Rule(
        "bedrock",
        {
            "access_key_id": ("AWS_ACCESS_KEY_ID",),
            "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
            "session_token": ("AWS_SESSION_TOKEN",),
        },
        base_url=("AWS_ENDPOINT_URL_BEDROCK_RUNTIME",),
        region=("AWS_REGION", "AWS_DEFAULT_REGION"),
        optional=frozenset({"session_token"}),
        needs=("region",),
    ),
    Rule(
        "azure_ai",
        {"api_key": ("AZURE_OPENAI_API_KEY",)},
        base_url=("AZURE_OPENAI_ENDPOINT",),
        options={"api_version": ("OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION")},
        needs=("base_url",),
    ),
    Rule(
        "azure_ai",
        {
            "tenant_id": ("AZURE_TENANT_ID",),
            "client_id": ("AZURE_CLIENT_ID",),
            "client_secret": ("AZURE_CLIENT_SECRET",),
        },
        base_url=("AZURE_OPENAI_ENDPOINT",),
        options={"authority": ("AZURE_AUTHORITY_HOST",)},
        needs=("base_url",),
    ),
    Rule(
        "azure_ai",
        {
            "tenant_id": ("AZURE_TENANT_ID",),
            "client_id": ("AZURE_CLIENT_ID",),
            "federated_token_file": ("AZURE_FEDERATED_TOKEN_FILE",),
        },
        base_url=("AZURE_OPENAI_ENDPOINT",),
        options={"authority": ("AZURE_AUTHORITY_HOST",)},
        needs=("base_url",),
    ),
)
"""First match of a name wins, so the simpler credential stands before the longer one."""


def discover(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Providers whose credentials are in the environment.

    Returns: sections as a file would say them, with `env:` references, and notes on what was left out and why.
    """
    found: dict[str, Any] = {}
    notes: list[str] = []
    for rule in DISCOVERED:
        if rule.name in found:
            continue
        held = {key: _first(environ, names) for key, names in rule.secrets.items()}
        if any(variable is None for key, variable in held.items() if key not in rule.optional):
            continue
        present = {key: variable for key, variable in held.items() if variable is not None}
        if any(environ[variable].startswith("fbx-") for variable in present.values()):
            # The exports that we print for clients, still set in the shell that starts us: we would call ourselves.
            notes.append(f"{rule.name}: the key in {', '.join(present.values())} is one of our own; not used")
            continue
        section: dict[str, Any] = {"kind": rule.name, "credential": _references(environ, present)}
        for setting, names in (("base_url", rule.base_url), ("region", rule.region)):
            if variable := _first(environ, names):
                section[setting] = environ[variable]
        section["options"] = {
            key: environ[variable] for key, names in rule.options.items() if (variable := _first(environ, names))
        }
        absent = [setting for setting in rule.needs if setting not in section]
        if absent:
            wanted = rule.region if absent == ["region"] else rule.base_url
            notes.append(f"{rule.name}: credentials found, but no {absent[0]}; set {' or '.join(wanted)} to enable it")
            continue
        found[rule.name] = section
    return found, notes


def provider_variables() -> frozenset[str]:
    """Every variable that may hold a provider's secret: our child processes do not get them."""
    return frozenset(name for rule in DISCOVERED for names in rule.secrets.values() for name in names)


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if environ.get(name)), None)


def _references(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    # Google's variable names a file; the others hold the secret.
    return {
        key: f"file:{environ[name]}" if name == "GOOGLE_APPLICATION_CREDENTIALS" else f"env:{name}"
        for key, name in variables.items()
    }
