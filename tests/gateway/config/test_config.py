"""Settings: what wins over what, and how a bad value names itself."""

import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import config
from gateway.config import ConfigError, PriceSettings, Settings, load
from gateway.discovery import DISCOVERED, discover


def written(folder: Path, text: str, name: str = "farebox.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_bind_loopback_and_put_everything_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(environ={})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 4000)
    assert settings.data_dir == tmp_path / ".farebox"
    assert settings.database_url == f"sqlite+aiosqlite:///{tmp_path}/.farebox/farebox.db"
    assert settings.redis_url is None
    assert settings.providers == {}
    assert settings.local.enabled


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, '[server]\nport = 1\nhost = "10.0.0.1"\n[log]\nlevel = "error"\n[timeouts]\ntotal_s = 5\n')
    environ = {"FAREBOX_SERVER__PORT": "2", "FAREBOX_LOG__LEVEL": "debug"}
    settings = load(file, environ, {"server.port": 3, "server.host": None})
    assert settings.server.port == 3
    assert settings.log.level == "debug"
    assert settings.server.host == "10.0.0.1"
    assert settings.timeouts.total_s == 5.0
    assert settings.timeouts.connect_s == 5.0


def test_common_names_are_read_and_our_own_win_over_them() -> None:
    common = {"PORT": "8080", "DATABASE_URL": "postgres://u:p@h/d", "REDIS_URL": "redis://r", "LOG_LEVEL": "warning"}
    settings = load(environ=common)
    assert settings.server.port == 8080
    assert settings.database_url == "postgres://u:p@h/d"
    assert settings.redis_url == "redis://r"
    assert settings.log.level == "warning"
    assert load(environ=common | {"FAREBOX_SERVER__PORT": "9"}).server.port == 9


def test_the_file_is_found_by_name_variable_or_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "strict = false\n")
    assert load(environ={}).strict is False
    other = written(tmp_path, "server:\n  port: 77\n", "other.yaml")
    assert load(environ={"FAREBOX_CONFIG": str(other)}).server.port == 77
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "absent.toml", {})
    assert caught.value.source == "--config"


@pytest.mark.parametrize(
    ("environ", "path", "source", "says"),
    [
        ({"PORT": "many"}, "server.port", "PORT", "int"),
        ({"FAREBOX_SERVER__PORT": "70000"}, "server.port", "FAREBOX_SERVER__PORT", "65535"),
        ({"FAREBOX_SERVER__PRT": "1"}, "server.prt", "FAREBOX_SERVER__PRT", "did you mean port"),
        ({"FAREBOX_SERVR__PORT": "1"}, "servr", "FAREBOX_SERVR__PORT", "did you mean server"),
        ({"FAREBOX_LOCAL__ENABLED": "perhaps"}, "local.enabled", "FAREBOX_LOCAL__ENABLED", "bool"),
        ({"FAREBOX_LOG__LEVEL": "loud"}, "log.level", "FAREBOX_LOG__LEVEL", "loud"),
        ({"FAREBOX_LOCAL__PRICE__INPUT": "1"}, "local.price", "FAREBOX_LOCAL__PRICE__INPUT", "output"),
        ({"DATABASE_URL": "mysql://h/d"}, "database_url", "DATABASE_URL", "mysql"),
        ({"REDIS_URL": "memcached://h"}, "redis_url", "REDIS_URL", "redis://"),
        ({"FAREBOX_MODELS": "[{"}, "models", "FAREBOX_MODELS", "JSON"),
        ({"FAREBOX_PROVIDERS__X__BASE_URL": "h:1"}, "providers.x.base_url", "FAREBOX_PROVIDERS__X__BASE_URL", "http"),
        ({"FAREBOX_PROVIDERS__X__REGIN": "1"}, "providers.x.regin", "FAREBOX_PROVIDERS__X__REGIN", "region"),
    ],
)
def test_a_bad_value_names_itself_its_origin_and_the_fix(
    environ: dict[str, str], path: str, source: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    assert (caught.value.path, caught.value.source) == (path, source)
    assert says in str(caught.value)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("nonsense = 1", "nonsense", "no such setting"),
        ("[server]\nport = 'x'", "server.port", "int"),
        ("[[models]]\nalias = 'a'\ndeployments = []", "models[0].deployments", "length"),
        (
            "[[models]]\nalias = 'a'\ndeployments = [{provider='gone', model='m'}]",
            "models[0].deployments[0].provider",
            "gone",
        ),
        (
            "[[models]]\nalias='a'\ndeployments=[{provider='local',model='m'}]\n" * 2,
            "models[1].alias",
            "twice",
        ),
        (
            "[[models]]\nalias='a'\ndeployments=[{provider='local',model='m',price={input='0.0000001',output='1'}}]",
            "models[0].deployments[0].price.input",
            "six decimals".replace("six", "6"),
        ),
        (
            "[[models]]\nalias='a'\ndeployments=[{provider='local',model='m',price={input='-1',output='1'}}]",
            "models[0].deployments[0].price.input",
            "not negative",
        ),
        ("[server\n", "", "does not parse"),
    ],
)
def test_a_bad_file_names_the_value_and_itself(tmp_path: Path, text: str, path: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert caught.value.path == (path or str(file))
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_prices_are_exact_from_toml_numbers_and_yaml_numbers(tmp_path: Path) -> None:
    toml = load(written(tmp_path, "[local.price]\ninput = 0.15\noutput = '0.6'\n"), {})
    yaml = load(written(tmp_path, "local:\n  price: {input: 0.15, output: '0.6'}\n", "farebox.yml"), {})
    assert toml.local.price == yaml.local.price == PriceSettings(input=Decimal("0.15"), output=Decimal("0.6"))


def test_kubernetes_service_variables_are_let_be() -> None:
    environ = {"FAREBOX_PORT": "tcp://10.0.0.1:4000", "FAREBOX_SERVICE_HOST": "10.0.0.1", "FAREBOX_PORT_4000_TCP": "x"}
    assert load(environ=environ).server.port == 4000


def test_secrets_stay_references_until_asked_and_never_show(tmp_path: Path) -> None:
    secret_file = written(tmp_path, "from-file\n", "key")
    text = f"""
    [providers.a]
    kind = "openai_like"
    base_url = "http://h"
    credential = {{ api_key = "env:A_KEY", other = "file:{secret_file}", plain = "in-the-clear" }}
    """
    environ = {
        "A_KEY": "from-env",
        "DATABASE_URL": "postgres://user:pass-word@h/d",
        "FAREBOX_KEY_PEPPER": "pep-per-pep-per",
    }
    settings = load(written(tmp_path, text), environ)
    provider = settings.providers["a"]
    assert provider.reveal() == {"api_key": "from-env", "other": "from-file", "plain": "in-the-clear"}
    assert settings.key_pepper is not None
    assert settings.key_pepper.reveal() == "pep-per-pep-per"
    shown = f"{settings!r} {provider!r} {json.dumps(config.public(settings))}"
    for secret in ("from-env", "from-file", "in-the-clear", "pass-word", "pep-per"):
        assert secret not in shown
    assert "env:A_KEY" in shown


def test_a_secret_that_cannot_be_had_is_told_at_start_not_at_load(tmp_path: Path) -> None:
    text = '[providers.groq]\ncredential = { api_key = "env:NOT_THERE" }\n[providers.off]\nenabled = false\n'
    text += 'credential = { api_key = "file:/not/there" }\n'
    settings = load(written(tmp_path, text), {})
    (error,) = settings.missing_secrets()
    assert error.path == "providers.groq.credential.api_key"
    assert "NOT_THERE" in str(error)


def test_origins_of_pages_are_written_as_browsers_do() -> None:
    said = load(environ={"FAREBOX_SERVER__CORS_ORIGINS": "https://app.example, http://localhost:5173"})
    assert said.server.cors_origins == ("https://app.example", "http://localhost:5173")
    for wrong in ("https://app.example/", "app.example", "https://*.example", "https://App.example"):
        with pytest.raises(ConfigError, match="is no origin"):
            load(environ={"FAREBOX_SERVER__CORS_ORIGINS": wrong})


def test_settings_reach_a_worker_process_with_only_the_secrets_they_name() -> None:
    environ = {"GROQ_API_KEY": "gsk-1", "UNRELATED": "stays-here"}
    travelled = pickle.dumps(load(environ=environ))
    assert b"stays-here" not in travelled
    settings = pickle.loads(travelled)
    assert settings.providers["groq"].reveal() == {"api_key": "gsk-1"}


@pytest.mark.parametrize(
    ("environ", "name", "section"),
    [
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h/v1"}, "openai", {"base_url": "http://h/v1"}),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic", {}),
        ({"GROQ_API_KEY": "k"}, "groq", {}),
        ({"CEREBRAS_API_KEY": "k"}, "cerebras", {}),
        ({"GOOGLE_API_KEY": "k"}, "gemini", {}),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "eu-west-1"},
            "bedrock",
            {"region": "eu-west-1"},
        ),
        ({"AWS_BEARER_TOKEN_BEDROCK": "t", "AWS_REGION": "us-east-1"}, "bedrock", {"region": "us-east-1"}),
        (
            {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://r.example"},
            "azure_ai",
            {"base_url": "https://r.example"},
        ),
        (
            {
                "AZURE_TENANT_ID": "t",
                "AZURE_CLIENT_ID": "c",
                "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
                "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us/",
                "AZURE_OPENAI_ENDPOINT": "https://r.example",
            },
            "azure_ai",
            {"base_url": "https://r.example", "options": {"authority": "https://login.microsoftonline.us/"}},
        ),
    ],
)
def test_a_key_in_the_environment_enables_its_provider(
    environ: dict[str, str], name: str, section: dict[str, Any]
) -> None:
    provider = load(environ=environ).providers[name]
    assert provider.kind == name
    assert provider.enabled
    assert set(provider.reveal().values()) <= set(environ.values())
    for setting, value in section.items():
        assert getattr(provider, setting) == value


def test_the_file_has_the_last_word_on_a_found_provider(tmp_path: Path) -> None:
    environ = {"GROQ_API_KEY": "k"}
    settings = load(written(tmp_path, '[providers.groq]\nbase_url = "http://other"\n'), environ)
    assert settings.providers["groq"].base_url == "http://other"
    assert settings.providers["groq"].reveal() == {"api_key": "k"}
    assert not load(written(tmp_path, "[providers.groq]\nenabled = false\n"), environ).providers["groq"].enabled
    assert load(written(tmp_path, "discover_providers = false\n"), environ).providers == {}


def test_what_is_left_out_is_said() -> None:
    found, notes = discover({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "OPENAI_API_KEY": "fbx-ours"})
    assert found == {}
    assert any("AWS_REGION" in note for note in notes)
    assert any("our own" in note for note in notes)


def test_children_do_not_inherit_provider_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in DISCOVERED:
        for variables in rule.secrets.values():
            for variable in variables:
                monkeypatch.setenv(variable, "secret-value")
    monkeypatch.setenv("DATABASE_URL", "secret-value")
    monkeypatch.setenv("HARMLESS", "stays")
    environment = config.child_environment({"EXTRA": "1"})
    assert "secret-value" not in environment.values()
    assert environment["HARMLESS"] == "stays"
    assert environment["EXTRA"] == "1"


def test_the_schema_describes_every_section() -> None:
    schema = config.schema()
    described = schema["$defs"]["Settings"]["properties"]
    assert set(described) == set(Settings.__struct_fields__)
    assert b"env:VAR" in msgspec.json.encode(schema)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/models/Llama-3/", "llama-3"),
        ("hf:a/B", "b"),
        ("x/y.gguf", "y"),
    ],
)
def test_a_local_model_is_asked_for_by_its_last_name(model: str, name: str) -> None:
    assert load(environ={"FAREBOX_LOCAL__MODEL": model}).local.served_name == name


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:4000"), ("0.0.0.0", "http://127.0.0.1:4000"), ("::1", "http://[::1]:4000")],
)
def test_the_address_that_is_printed_can_be_called(host: str, url: str) -> None:
    assert load(environ={"FAREBOX_SERVER__HOST": host}).base_url == url
    assert load(environ={"FAREBOX_SERVER__PUBLIC_URL": "https://x.example/"}).base_url == "https://x.example"
