"""What each kind of provider needs to be told, for whoever adds one: the dashboard's form and `farebox providers add`.

What they mean is each adapter's docstring; discovery.py has the same names in the environment.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from providers.registry import class_of, names


class KindField(Struct, frozen=True):
    """name: of the credential's field, or of the option."""

    name: str
    label: str
    secret: bool = False
    required: bool = True
    hint: str = ""


class Way(Struct, frozen=True):
    """One way to be known to the provider. No fields: by what this machine has."""

    label: str
    fields: tuple[KindField, ...] = ()


class ProviderKind(Struct, frozen=True):
    """base_url: whether it must be given; default_base_url: the provider's own, for those that have one address.
    region: whether it must be given; None: it has none."""

    kind: str
    label: str
    ways: tuple[Way, ...]
    base_url: bool = False
    default_base_url: str | None = None
    region: bool | None = None
    options: tuple[KindField, ...] = ()


_KEY = Way("API key", (KindField("api_key", "API key", secret=True),))
_AWS = (
    Way(
        "Access key",
        (
            KindField("access_key_id", "Access key ID", hint="AKIA…"),
            KindField("secret_access_key", "Secret access key", secret=True),
            KindField("session_token", "Session token", secret=True, required=False),
        ),
    ),
    Way("Role of this machine"),
)
_BEDROCK = (_AWS[0], Way("Bedrock API key", (KindField("api_key", "Bedrock API key", secret=True),)), *_AWS[1:])
_PROFILE = KindField("profile", "AWS profile", required=False, hint="of this machine's AWS settings; may assume a role")
_ROLE = (
    KindField("role_arn", "Role ARN", required=False, hint="arn:aws:iam::…:role/…, assumed with these keys"),
    KindField("external_id", "External ID", required=False, hint="where the role asks for one"),
)
_LABELS: Final = {
    "anthropic": "Anthropic",
    "cerebras": "Cerebras",
    "cohere": "Cohere",
    "deepseek": "DeepSeek",
    "fireworks": "Fireworks AI",
    "gemini": "Google Gemini",
    "groq": "Groq",
    "mistral": "Mistral",
    "moonshotai": "Moonshot AI",
    "nvidia_nim": "NVIDIA NIM",
    "openai": "OpenAI",
    "openrouter": "OpenRouter",
    "perplexity": "Perplexity",
    "together": "Together AI",
    "xai": "xAI",
}
_SPECIAL: Final = (
    ProviderKind(
        "azure_ai",
        "Azure AI Foundry, Azure OpenAI",
        (
            _KEY,
            Way(
                "Entra application",
                (
                    KindField("tenant_id", "Tenant ID"),
                    KindField("client_id", "Client ID"),
                    KindField("client_secret", "Client secret", secret=True),
                ),
            ),
            Way(
                "Entra workload identity",
                (
                    KindField("tenant_id", "Tenant ID"),
                    KindField("client_id", "Client ID"),
                    KindField("federated_token_file", "Federated token file", hint="a path on the gateway's machine"),
                ),
            ),
            Way("Managed identity of this machine"),
        ),
        base_url=True,
        options=(
            KindField("api_version", "API version", required=False, hint="empty: the v1 API"),
            KindField("authority", "Entra host", required=False, hint="empty: the public cloud's"),
            KindField("scope", "Token scope", required=False, hint="empty: the public cloud's"),
        ),
    ),
    ProviderKind("bedrock", "AWS Bedrock", _BEDROCK, region=True, options=(*_ROLE, _PROFILE)),
    ProviderKind(
        "bedrock_openai",
        "AWS Bedrock, OpenAI-compatible (runtime or mantle)",
        _BEDROCK,
        region=True,
        options=(
            KindField("host", "Host", required=False, hint="runtime, or mantle for models that are only there"),
            *_ROLE,
            _PROFILE,
        ),
    ),
    ProviderKind("sagemaker", "AWS SageMaker", _AWS, region=True, options=(*_ROLE, _PROFILE)),
    ProviderKind(
        "vertex",
        "Google Vertex AI",
        (
            Way("Service account", (KindField("service_account_json", "Service account key (JSON)", secret=True),)),
            Way("Identity of this machine"),
        ),
        region=False,
        options=(KindField("project", "Project ID"),),
    ),
    ProviderKind(
        "openai_like",
        "OpenAI-compatible (vLLM, SGLang, TGI, …)",
        (
            Way(
                "API key",
                (
                    KindField(
                        "api_key", "API key", secret=True, required=False, hint="left empty where it asks for none"
                    ),
                ),
            ),
            Way("No key"),
        ),
        base_url=True,
    ),
)
_OPTIONS: Final = {
    "openai": (
        KindField("organization", "Organization", required=False),
        KindField("project", "Project", required=False),
    ),
}


def kinds() -> tuple[ProviderKind, ...]:
    """By label."""
    simple = (
        ProviderKind(
            name,
            label,
            (_KEY,),
            default_base_url=class_of(name).default_base_url,
            options=_OPTIONS.get(name, ()),
        )
        for name, label in _LABELS.items()
        if name in names()
    )
    return tuple(sorted((*simple, *_SPECIAL), key=lambda each: each.label.lower()))
