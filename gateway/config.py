"""Typed settings, and the one place of the gateway that reads the environment.

Order of precedence: flags, environment, file, provider keys found in the environment, defaults. A bad value stops
the start with a `ConfigError` that names the value, where it came from and what to do. Nothing here connects to
anything; secrets stay references (`env:VAR`, `file:/path`) until somebody asks for them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gateway.config_parts import REMOTE
from gateway.config_parts import ConfigError as ConfigError
from gateway.config_parts import Secret as Secret
from gateway.discovery import discover, provider_variables
from gateway.offered import DeploymentSettings as DeploymentSettings
from gateway.offered import Feature, Name
from gateway.offered import ModelSettings as ModelSettings
from gateway.offered import PricedUnit as PricedUnit
from gateway.offered import PriceSettings as PriceSettings
from gateway.offered import ProviderSettings as ProviderSettings
from gateway.offered import Strategy as Strategy
from gateway.sections import AdmissionSettings as AdmissionSettings
from gateway.sections import (
    BatchSettings,
    NetworkSettings,
    Port,
    ReplicaSettings,
    Seconds,
    Section,
    ServerSettings,
    TelemetrySettings,
)
from gateway.sections import LogSettings as LogSettings
from gateway.sections import TimeoutSettings as TimeoutSettings
from gateway.signing_in import AdminSettings, faults
from gateway.till import (
    AlertSettings,
    ExportSettings,
    GuardrailSettings,
    MailSettings,
    PaymentSettings,
    RetentionSettings,
)

CONFIG_NAMES = ("farebox.toml", "farebox.yaml", "farebox.yml")
PREFIX = "FAREBOX_"
COMMON_NAMES = {
    "DATABASE_URL": "database_url",
    "REDIS_URL": "redis_url",
    "PORT": "server.port",
    "LOG_LEVEL": "log.level",
}
"""Names that platforms set by convention. A FAREBOX_ name for the same setting wins over them."""

DATABASES = ("postgresql", "postgres", "sqlite")
# As browsers write it: scheme, host in lower case, port where it is not the scheme's own; no path.
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s,*A-Z]+")

PUSD_DIGITS = 6
"""A price in USD per million tokens with six decimals is a whole number of pUSD (10**-12 USD) per token."""
UNIT_DIGITS = 12
"""As much for a price in USD of one second, image or the like."""


class LocalSettings(Section, frozen=True):
    """Our own engine on this machine.

    The default price is that of a mid-range hosted model, not of a small one: a cent is then about a thousand output
    tokens, and a newcomer sees a bill and a refusal within minutes. Set it to what the machine costs you.
    """

    enabled: bool = True
    model: str = "smollm2-135m-instruct"
    """A catalogue name, or a folder with weights."""
    base_url: str | None = None
    """An engine that somebody else runs. None: `up` starts one."""
    port: Port = 0
    """0: any free one. The engine listens on loopback and asks for a token."""
    capabilities: frozenset[Feature] | None = None
    """What the model does. None: all that the engine can but reading images, which few models do: `image_input`."""
    context_window: Annotated[int, Meta(ge=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] = 512
    """Held as worst case for a request that names no limit of its own."""
    price: PriceSettings = PriceSettings(
        input=Decimal("2.00"), output=Decimal("10.00"), cache_read=Decimal("0.20"), cache_write=Decimal("2.00")
    )

    @property
    def served_name(self) -> str:
        """What clients ask for: the catalogue's name, or the last part of a path or repository."""
        return self.model.rstrip("/").rpartition("/")[2].removesuffix(".gguf").removeprefix("hf:").lower()


class RoutingSettings(Section, frozen=True):
    """Asking the only deployment again, before any of its answer has arrived. Time-outs and the client's own mistakes
    are never tried again."""

    retries: Annotated[int, Meta(ge=0, le=5)] = 2
    """Tries after the first, of one request. 0: never."""
    hedge_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Of all requests: how many may be asked of two deployments at once, where an alias says `hedge_percentile`."""
    hedge_max_usd: Decimal | None = Decimal("0.05")
    """A request is not asked twice where the prompt alone, at what its provider bills, would cost more. None: however
    dear it is."""
    slow_first_token_s: Seconds | None = None
    """A stream whose first token takes longer counts against its deployment as a failure does. None: late is well."""
    queue_s: Seconds = 30.0
    """How long a request waits for its turn at a deployment with `max_parallel`, before it is told to come back."""
    queue_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    """Requests that wait for one deployment; beyond, the last of the key that has most waiting is refused."""
    retry_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of a deployment's recent requests, so that retries never make an outage worse; a few are always free."""


class Settings(Section, frozen=True):
    """Everything the process was told. `repr` shows no secret and no database password."""

    server: ServerSettings = ServerSettings()
    batches: BatchSettings = BatchSettings()
    data_dir: Path = field(default_factory=lambda: Path(".farebox"))
    """Database, journal, embedded servers' files, logs, secrets. Default: .farebox in the current folder."""
    database_url: str = ""
    """In its common form; `billing.db` picks the driver. Empty: `load` fills in SQLite inside `data_dir`."""
    redis_url: str | None = None
    """None: `up` starts an embedded Valkey and puts its socket here."""
    providers: dict[str, ProviderSettings] = field(default_factory=dict)
    deployments: tuple[DeploymentSettings, ...] = ()
    """Models of providers with limits, tags or prices of their own, to be asked for as `provider/model`."""
    models: tuple[ModelSettings, ...] = ()
    local: LocalSettings = LocalSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    network: NetworkSettings = NetworkSettings()
    routing: RoutingSettings = RoutingSettings()
    admission: AdmissionSettings = AdmissionSettings()
    log: LogSettings = LogSettings()
    payments: PaymentSettings = PaymentSettings()
    mail: MailSettings = MailSettings()
    alerts: AlertSettings = AlertSettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    exports: dict[Name, ExportSettings] = field(default_factory=dict)
    """Metering services that get an event for each request, by a name of your own."""
    retention: RetentionSettings = RetentionSettings()
    admin: AdminSettings = AdminSettings()
    strict: bool = True
    """Refuse by name what a target cannot say. False: leave it out and list it in a response header."""
    discover_providers: bool = True
    """Enable a provider whose key is found in the environment."""
    key_pepper: Secret | None = None
    """Keys are stored as a hash under this. None: made once and kept in `data_dir`."""
    key_ring: Secret | None = None
    """Keys that provider credentials in the database are sealed under: `id:base64 of 32 bytes`, one a line, the sealing
    one first. The same for every gateway. None: made once and kept in `data_dir`."""
    engine_key: Secret | None = None
    """Bearer token of the local engine. None: made once and kept in `data_dir`."""
    bootstrap_key: Secret | None = None
    """The first virtual key, given instead of made, for infrastructure as code."""

    def __repr__(self) -> str:
        return f"Settings({public(self)!r})"

    @property
    def base_url(self) -> str:
        """What clients call us, without /v1."""
        return self.server.public_url.rstrip("/") if self.server.public_url else self._address(self.server)

    @property
    def office_url(self) -> str:
        """Where the dashboard and the admin API are, as people in the house see it."""
        return self.base_url if self.server.admin_port is None else self._address(self.server.admin_listener)

    def _address(self, server: ServerSettings) -> str:
        host = server.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"{'https' if server.tls else 'http'}://{shown}:{server.port}"

    def missing_secrets(self) -> list[ConfigError]:
        """Secrets that something which is on needs and that cannot be had now: a start refuses to go on with any."""
        named = {
            f"providers.{name}.credential.{key}": secret
            for name, provider in self.providers.items()
            for key, secret in (provider.credential.items() if provider.enabled else ())
        }
        placed = [*self.deployments, *(d for model in self.models for d in model.deployments)]
        named |= {f"{d.place}.credential.{key}": secret for d in placed for key, secret in d.credential.items()}
        named |= {f"exports.{name}.token": export.token for name, export in self.exports.items()}
        named |= {f"admin.oidc.{each.name}.client_secret": each.client_secret
                  for each in self.admin.oidc if each.client_secret is not None}  # fmt: skip
        for path, given in (
            ("payments.stripe_webhook_secret", self.payments.stripe_webhook_secret),
            ("mail.password", self.mail.password),
            ("alerts.signing_secret", self.alerts.signing_secret),
            ("guardrails.signing_secret", self.guardrails.signing_secret),
            ("telemetry.sentry_dsn", self.telemetry.sentry_dsn),
            ("replicas.token", self.replicas.token),
        ):
            if given is not None:
                named[path] = given
        missing = []
        for path, secret in named.items():
            try:
                secret.reveal()
            except ConfigError as error:
                missing.append(ConfigError(path, str(error), source=secret.reference))
        return missing


def load(
    path: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Settings:
    """Put the settings together.

    path: a file to read; None: FAREBOX_CONFIG, else farebox.toml, .yaml or .yml in the current folder, else none.
    environ: None is the process's own. flags: dotted names ("server.port"); None values are left out.
    Raises: ConfigError.
    """
    if environ is None:
        environ = os.environ
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file = find_file(path, environ)
    said_in_file = read_file(file) if file else {}
    overlay = dict(_environment(environ))
    if said_in_file.get("discover_providers", True) is not False and _truthy(overlay, "discover_providers"):
        found, _ = discover(environ)
        _merge(tree, {"providers": found}, sources, "the environment")
    if file:
        _merge(tree, said_in_file, sources, str(file))
    for dotted, (value, variable) in overlay.items():
        _put(tree, dotted, value, sources, variable)
    for dotted, flag in (flags or {}).items():
        if flag is not None:
            _put(tree, dotted, flag, sources, "--" + dotted.replace(".", "-").replace("_", "-"))
    settings = _convert(tree, sources, environ)
    return _check(_complete(settings), sources)


class Source:
    """Where settings were read from, to be read again once the file is another one."""

    def __init__(self, path: Path | None = None, environ: Mapping[str, str] | None = None, **flags: object) -> None:
        """As `load`; flags with `__` for the dot."""
        self._environ = os.environ if environ is None else environ
        found = find_file(path, self._environ)
        # Absolute: nobody moves us elsewhere, but a file that is named by its folder's entry may come later.
        self._path = None if found is None else found.absolute()
        self._flags = {name.replace("__", "."): value for name, value in flags.items()}

    def stamp(self) -> tuple[int, int, int] | None:
        """Another one whenever the file may have been written; None: there is none."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None  # Between an editor's removal and its new file.
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)

    def read(self) -> Settings:
        """Raises: ConfigError."""
        return load(self._path, self._environ, self._flags)


def find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file that settings come from. Raises: ConfigError if one was named and is not there."""
    named = path or (Path(environ["FAREBOX_CONFIG"]) if environ.get("FAREBOX_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            source = "--config" if path else "FAREBOX_CONFIG"
            raise ConfigError(str(named), "no such file", source=source, fix="name a farebox.toml or farebox.yaml")
        return named
    return next((Path(name) for name in CONFIG_NAMES if Path(name).is_file()), None)


def read_file(path: Path) -> dict[str, Any]:
    """Raises: ConfigError with the line that does not parse."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", fix="check the file's permissions") from error
    try:
        if path.suffix == ".toml":
            # Decimal keeps `input = 0.15` exact; a binary float is never money.
            return tomllib.loads(text, parse_float=Decimal)
        tree = _read_yaml(text)
    except ValueError as error:
        raise ConfigError(str(path), f"does not parse: {error}", fix="`farebox config check` after the edit") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "holds no settings at its top level", fix="write `section:` lines")
    return tree


def _read_yaml(text: str) -> Any:
    import yaml  # Here, because most starts read TOML or nothing.

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The process's environment for a child of ours, less every provider's secret, plus `extra`."""
    hidden = provider_variables() | {
        "DATABASE_URL", "REDIS_URL", "FAREBOX_KEY_PEPPER", "FAREBOX_KEY_RING", "FAREBOX_BOOTSTRAP_KEY", "VAULT_TOKEN",
        "VAULT_SECRET_ID",
    }  # fmt: skip
    return {name: value for name, value in os.environ.items() if name not in hidden} | dict(extra)


def own_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The process's environment, secrets and all, for another process of the gateway itself."""
    return {**os.environ, **extra}


def remote_installation() -> tuple[str | None, str | None]:
    """Where commands are sent, and the API token to show there: FAREBOX_URL, FAREBOX_TOKEN."""
    return os.environ.get("FAREBOX_URL") or None, os.environ.get("FAREBOX_TOKEN") or None


def public(settings: Settings) -> dict[str, Any]:
    """Plain data to show: secrets as references or `hidden`, no password in a URL."""
    tree: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=_encode, str_keys=True)
    tree["database_url"] = hide_password(settings.database_url)
    tree["redis_url"] = hide_password(settings.redis_url) if settings.redis_url else None
    return tree


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors and `farebox config schema`."""
    return msgspec.json.schema(Settings, schema_hook=_schema)


def hide_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


def _encode(value: Any) -> str:
    if isinstance(value, Secret):
        return value.shown
    return str(value)


def _schema(kind: type) -> dict[str, Any]:
    if kind is Secret:
        others = ", ".join(f"{scheme}:..." for scheme in REMOTE)
        return {"type": "string", "description": f"a secret: env:VAR, file:/path, {others}, or the value itself"}
    return {"type": "string"}


def _environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Dotted setting -> (text, variable). Raises: ConfigError for FAREBOX_X__Y where X is no section.

    Single names that are no setting are left alone: Kubernetes gives every pod beside a service called farebox
    variables such as FAREBOX_PORT=tcp://... and FAREBOX_SERVICE_HOST.
    """
    fields = set(Settings.__struct_fields__)
    said = {dotted: (environ[name], name) for name, dotted in COMMON_NAMES.items() if environ.get(name)}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or not text:
            continue
        section, *rest = name.removeprefix(PREFIX).lower().split("__")
        if section not in fields:
            if rest:
                raise ConfigError(section, "no such section", source=name, fix=_nearest(section, fields))
            continue
        said[".".join([section, *rest])] = (text, name)
    return said


def _truthy(overlay: Mapping[str, tuple[str, str]], dotted: str) -> bool:
    return overlay.get(dotted, ("true", ""))[0].lower() not in {"false", "0", "no", "off"}


def _merge(tree: dict[str, Any], said: Mapping[str, Any], sources: dict[str, str], source: str, at: str = "") -> None:
    for key, value in said.items():
        dotted = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping) and isinstance(tree.get(key, {}), dict):
            _merge(tree.setdefault(key, {}), value, sources, source, dotted)
        else:
            tree[key] = value
        sources[dotted] = source


def _put(tree: dict[str, Any], dotted: str, value: object, sources: dict[str, str], source: str) -> None:
    *parents, last = dotted.split(".")
    node = tree
    for parent in parents:
        below = node.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(dotted, f"{parent} holds no settings of its own", source=source)
        node = below
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise ConfigError(dotted, f"is not JSON: {error}", source=source, fix="write a JSON value") from error
    elif isinstance(value, str) and dotted in ("server.trusted_proxies", "server.cors_origins"):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, str) and value.lower() in ("yes", "on", "no", "off"):
        value = value.lower() in ("yes", "on")
    node[last] = value
    sources[dotted] = source


def _convert(tree: dict[str, Any], sources: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    def decode(kind: type, value: Any) -> Any:
        if kind is Secret and isinstance(value, str) and value:
            return Secret(value, environ)
        if kind is Path and isinstance(value, str | Path):
            return Path(value).expanduser()
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")

    try:
        # Not strict: the environment has only text, so "4000" is a number where a number is wanted.
        return msgspec.convert(tree, Settings, strict=False, dec_hook=decode)
    except msgspec.ValidationError as error:
        problem, dotted = _place(error, tree, decode)
        fix = "`farebox config schema` lists what is allowed"
        if unknown := re.search(r"unknown field `(.+?)`", problem):
            near = _nearest(unknown[1], _fields_at(dotted))
            dotted = f"{dotted}.{unknown[1]}" if dotted else unknown[1]
            problem, fix = "no such setting", near
        raise ConfigError(dotted, problem, source=_source(sources, dotted), fix=fix) from error


def _place(error: msgspec.ValidationError, tree: Mapping[str, Any], decode: Any) -> tuple[str, str]:
    """Returns: what is wrong, and the dotted name of what."""
    problem, _, where = str(error).partition(" - at `")
    dotted = where.rstrip("`").removeprefix("$").removeprefix(".")
    if dotted.startswith("providers[...]"):  # msgspec does not tell which key of a mapping; each alone does.
        for name, section in tree["providers"].items():
            try:
                msgspec.convert(section, ProviderSettings, strict=False, dec_hook=decode)
            except msgspec.ValidationError:
                return problem, dotted.replace("[...]", f".{name}", 1)
    return problem, dotted


def _complete(settings: Settings) -> Settings:
    """Fill in what depends on other settings: paths, the adapter of each provider."""
    data = settings.data_dir.absolute()
    url = settings.database_url or f"sqlite+aiosqlite:///{data / 'farebox.db'}"
    kinds = {name: p if p.kind else replace(p, kind=name) for name, p in settings.providers.items()}
    return replace(settings, data_dir=data, database_url=url, providers=kinds)


def _check(settings: Settings, sources: Mapping[str, str]) -> Settings:
    """What types cannot say. Raises: ConfigError."""

    def refuse(dotted: str, problem: str, fix: str) -> ConfigError:
        return ConfigError(dotted, problem, source=_source(sources, dotted), fix=fix)

    scheme = settings.database_url.partition("://")[0]
    if scheme.partition("+")[0] not in DATABASES:
        raise refuse("database_url", f"{scheme}:// is no database we speak", "use postgresql:// or sqlite:///")
    if settings.redis_url and not re.match(r"(rediss?(\+(cluster|sentinel))?|unix)://", settings.redis_url):
        fix = "use redis://, rediss://, unix:///path, redis+cluster://a:7000,b:7000 or redis+sentinel://a:26379/NAME"
        raise refuse("redis_url", "is no Redis address", fix)
    if (ca_file := settings.network.ca_file) is not None and not ca_file.is_file():
        raise refuse("network.ca_file", f"no such file: {ca_file}", "name a PEM file of certificates to trust")
    for origin in settings.server.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            fix = "write it as browsers do, https://app.example, or * for any"
            raise refuse("server.cors_origins", f"{origin!r} is no origin", fix)
    for name, provider in settings.providers.items():
        if provider.base_url and not provider.base_url.startswith(("http://", "https://")):
            raise refuse(f"providers.{name}.base_url", "is no http(s) address", "begin it with https://")
        if provider.replicas and provider.base_url:
            raise refuse(f"providers.{name}.base_url", "its replicas say theirs", "leave it out")
    for dotted, problem, fix in faults(settings.admin):
        raise refuse(dotted, problem, fix)
    known = set(settings.providers) | {"local"}
    for at, deployment in enumerate(settings.deployments):
        _check_deployment(deployment, f"deployments[{at}]", known, refuse)
    aliases: set[str] = set()
    for at, model in enumerate(settings.models):
        if model.alias in aliases:
            raise refuse(f"models[{at}].alias", f"{model.alias!r} is there twice", "one entry, several deployments")
        aliases.add(model.alias)
        if (most := model.max_request_usd) is not None and not (most.is_finite() and most > 0):
            raise refuse(f"models[{at}].max_request_usd", f"{most} is no ceiling", "USD above zero, or leave it out")
        if model.similar_answers is not None and model.keep_answers_s is None:
            fix = "say for how long: keep_answers_s = 3600"
            raise refuse(f"models[{at}].similar_answers", "no answers are kept", fix)
        for nth, deployment in enumerate(model.deployments):
            _check_deployment(deployment, f"models[{at}].deployments[{nth}]", known, refuse)
    _check_price(settings.local.price, "local.price", refuse)
    return settings


def _check_deployment(said: DeploymentSettings, dotted: str, known: set[str], refuse: Any) -> None:
    if said.provider not in known:
        fix = f"{_nearest(said.provider, known)}, or add [providers.{said.provider}]"
        raise refuse(f"{dotted}.provider", f"no provider is called {said.provider!r}", fix)
    if said.credential and not said.account:
        raise refuse(f"{dotted}.account", "a credential of its own has no name", 'say whose it is: account = "second"')
    _check_price(said.price, f"{dotted}.price", refuse)
    _check_price(said.cost, f"{dotted}.cost", refuse)


def _check_price(price: PriceSettings | None, dotted: str, refuse: Any) -> None:
    if price is None:
        return
    missing = [name for name in ("input", "output") if getattr(price, name) is None]
    if missing and not (price.per and len(missing) == 2):
        raise refuse(dotted, f"{' and '.join(missing)} is missing", "USD per million tokens, or `per` = {unit = USD}")
    for name in PriceSettings.__struct_fields__:
        if name != "per" and (value := getattr(price, name)) is not None and not is_price(value, PUSD_DIGITS):
            fix = f"USD per million tokens, not negative, at most {PUSD_DIGITS} decimals"
            raise refuse(f"{dotted}.{name}", f"{value} is no price", fix)
    for name, value in price.per.items():
        if not is_price(value, UNIT_DIGITS):
            fix = f"USD for one unit, not negative, at most {UNIT_DIGITS} decimals"
            raise refuse(f"{dotted}.per.{name}", f"{value} is no price", fix)


def is_price(value: Decimal, digits: int) -> bool:
    """Whether it is a whole number of pUSD."""
    exponent = value.normalize().as_tuple().exponent
    return isinstance(exponent, int) and value >= 0 and exponent >= -digits


def _source(sources: Mapping[str, str], dotted: str) -> str:
    """Where the value at `dotted`, or the nearest section above it, came from."""
    at = dotted
    while at:
        if at in sources:
            return sources[at]
        at = re.sub(r"(\.[^.\[\]]+|\[[^\]]*\])$", "", at) if re.search(r"[.\[]", at) else ""
    return next((source for name, source in sources.items() if name.startswith(f"{dotted}.")), "")


def _fields_at(dotted: str) -> set[str]:
    """The settings that exist in the section at `dotted`, for the hint after a misspelling."""
    kinds: dict[str, type[Struct]] = {
        "server": ServerSettings,
        "batches": BatchSettings,
        "local": LocalSettings,
        "timeouts": TimeoutSettings,
        "replicas": ReplicaSettings,
        "network": NetworkSettings,
        "routing": RoutingSettings,
        "log": LogSettings,
        "payments": PaymentSettings,
        "mail": MailSettings,
        "alerts": AlertSettings,
        "exports": ExportSettings,
        "retention": RetentionSettings,
        "admin": AdminSettings,
        "models": ModelSettings,
        "deployments": DeploymentSettings,
        "providers": ProviderSettings,
    }
    if not dotted:
        return set(Settings.__struct_fields__)
    if dotted.endswith("price"):
        return set(PriceSettings.__struct_fields__)
    if "deployments" in dotted:
        return set(DeploymentSettings.__struct_fields__)
    kind = kinds.get(re.split(r"[.\[]", dotted)[0], Settings)
    return set(kind.__struct_fields__)


def _nearest(word: str, known: set[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(sorted(known))}"
