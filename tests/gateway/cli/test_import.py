"""`farebox import litellm`: a configuration and a PostgreSQL of LiteLLM's, as they are in the field."""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from billing.accounts import Window
from gateway.config import load
from gateway.moving.litellm_config import convert
from gateway.moving.litellm_database import pusd, window_of
from gateway.moving.report import Report
from gateway.moving.toml import dump
from tests import services
from tests.gateway.cli.conftest import Up, farebox, farebox_json

CONFIG = """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, rpm: 600}
  - model_name: gpt-4o
    litellm_params:
      model: azure/my-gpt4o
      api_base: https://eu.openai.azure.com
      api_key: sk-in-clear-text
      api_version: "2024-10-21"
      rpm: 200
      timeout: 30
    model_info: {input_cost_per_token: 0.0000025, output_cost_per_token: 1e-05}
  - model_name: claude
    litellm_params: {model: bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0, aws_region_name: us-east-1}
  - model_name: local llama!
    litellm_params:
      {model: ollama/llama3, api_base: "http://10.0.0.7:11434", input_cost_per_token: 0, output_cost_per_token: 0}
  - model_name: gemini
    litellm_params: {model: vertex_ai/gemini-2.5-pro, vertex_project: acme, vertex_location: europe-west4,
                     vertex_credentials: /run/google.json, input_cost_per_token: 1.23456789e-06}
  - model_name: whisper
    litellm_params: {model: groq/whisper-large-v3, litellm_credential_name: fast}
    model_info: {input_cost_per_second: 0.00003083}
  - model_name: plain
    litellm_params: {model: claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: "anthropic/*"
    litellm_params: {model: "anthropic/*", api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: odd
    litellm_params: {model: replicate/x}
credential_list:
  - credential_name: fast
    credential_values: {api_key: os.environ/GROQ_API_KEY}
litellm_settings:
  drop_params: true
  request_timeout: 120
  success_callback: [langfuse]
  cache: true
  cache_params: {type: redis, ttl: 60}
  context_window_fallbacks: [{claude: [gemini]}]
router_settings:
  routing_strategy: latency-based-routing
  num_retries: 9
  fallbacks: [{gpt-4o: [claude, nowhere]}]
  model_group_alias: {gpt-4: gpt-4o}
  allowed_fails: 3
general_settings: {master_key: sk-1234}
guardrails: []
"""


def whys(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["what"]: row["why"] for row in rows}


def test_a_configuration_becomes_settings_that_load(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    told = farebox_json("import", "litellm", "config.yaml", cwd=tmp_path)
    text = (tmp_path / told["settings_file"]).read_text()
    assert "sk-" not in text, "no secret is copied"
    assert "sk-in-clear" not in json.dumps(told)
    settings = load(tmp_path / told["settings_file"], environ={})
    models = {model.alias: model for model in settings.models}
    assert set(models) == {"gpt-4o", "gpt-4", "claude", "local-llama", "gemini", "whisper", "plain"}
    first, second, third = models["gpt-4o"].deployments
    assert (first.provider, first.model, first.weight, first.priority) == ("openai", "gpt-4o", 600, 0)
    assert (second.provider, second.weight) == ("azure_ai", 200)
    assert second.price is not None
    assert (second.price.input, second.price.output) == (Decimal("2.5"), Decimal(10))
    assert (third.provider, third.priority) == ("bedrock", 1)
    assert models["gpt-4"].deployments == models["gpt-4o"].deployments
    assert [d.provider for d in models["claude"].deployments] == ["bedrock", "vertex"]
    assert models["whisper"].deployments[0].price is not None
    assert models["whisper"].deployments[0].price.per == {"seconds": Decimal("0.00003083")}
    assert models["gemini"].deployments[0].price is not None
    assert models["gemini"].deployments[0].price.input == Decimal("1.234568")
    assert {model.strategy for model in models.values()} == {"lowest_latency"}
    assert {model.keep_answers_s for model in models.values()} == {60}
    assert (settings.strict, settings.timeouts.total_s, settings.routing.retries) == (False, 120, 5)
    providers = settings.providers
    assert providers["openai_like"].base_url == "http://10.0.0.7:11434/v1"
    assert repr(providers["azure_ai"].credential["api_key"]) == "Secret(env:AZURE_AI_API_KEY)"
    assert repr(providers["groq"].credential["api_key"]) == "Secret(env:GROQ_API_KEY)"
    assert repr(providers["vertex"].credential["credentials_file"]) == "Secret(file:/run/google.json)"
    assert (providers["vertex"].region, providers["vertex"].options) == ("europe-west4", {"project": "acme"})
    assert providers["anthropic"].kind == "anthropic"
    left, changed = whys(told["not_carried"]), whys(told["changed"])
    assert "replicate" in left["model odd -> replicate/x"]
    assert "[timeouts]" in left["litellm_params.timeout"]
    for name in ("general_settings.master_key", "litellm_settings.success_callback", "router_settings.allowed_fails",
                 "guardrails", "fallbacks gpt-4o -> claude, nowhere"):  # fmt: skip
        assert name in left
    assert "AZURE_AI_API_KEY" in changed["api_key of azure_ai in clear text"]
    assert "rounded up" in changed["model gemini -> vertex_ai/gemini-2.5-pro: input_cost_per_token"]
    table = farebox("import", "litellm", "config.yaml", cwd=tmp_path).stdout
    assert "[timeouts]" in table
    assert "Not carried:" in table


@pytest.mark.parametrize(
    ("text", "says"),
    [("- a list", "no configuration"), ("model_list: [", "config.yaml"), (None, "No such file")],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert says in farebox("import", "litellm", "config.yaml", cwd=tmp_path, check=2).stderr
    assert "--database" in farebox("import", "litellm", cwd=tmp_path, check=2).stderr
    assert not (tmp_path / "farebox.imported.toml").exists()


def test_a_dry_run_writes_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert farebox_json("import", "litellm", "config.yaml", "--dry-run", cwd=tmp_path)["dry_run"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_toml_is_read_back_as_it_was_said() -> None:
    tree: dict[str, Any] = {
        "strict": False,
        "timeouts": {"total_s": 1.5},
        "providers": {"a b": {"kind": "x", "options": {"q\"'": 'a "b" \\ \n\t\x7f é'}}},
        "models": [{"alias": "m", "deployments": [{"model": "x", "price": {"per": {"seconds": "0.1"}}}], "on": ["a"]}],
    }
    assert tomllib.loads(dump(tree, "a comment\nof two lines")) == tree


@pytest.mark.parametrize(
    ("said", "window", "exact"),
    [(None, Window.TOTAL, True), ("1h", Window.HOUR, True), ("24h", Window.DAY, True), ("1mo", Window.MONTH, True),
     ("30d", Window.MONTH, True), ("7d", Window.MONTH, False), ("30s", Window.HOUR, False),
     ("90d", Window.TOTAL, False), ("soon", Window.TOTAL, False)],
)  # fmt: skip
def test_a_budget_never_gets_looser(said: str | None, window: Window, exact: bool) -> None:
    assert window_of(said) == (window, exact)


def test_floats_of_dollars_are_what_they_show() -> None:
    assert [pusd(value) for value in (0.1, 1e-12, 1.5e-07, 0.30000000000000004)] == [10**11, 1, 150_000, 3 * 10**11]


def test_every_word_of_a_strange_configuration_is_accounted_for() -> None:
    report = Report()
    strange = {
        "model_list": [{"model_name": "x", "litellm_params": {"model": "gpt-4o", "api_key": 5, "z": 1}}],
        "router_settings": {"routing_strategy": "by-moon"},
        "else": 1,
        "litellm_settings": None,
    }
    tree = convert(strange, report)
    assert tree["providers"] == {"openai": {"kind": "openai", "credential": {"api_key": "env:OPENAI_API_KEY"}}}
    assert {note.what for note in report.left} == {"litellm_params.z", "routing_strategy by-moon", "else"}


# LiteLLM's tables as its migrations make them, less what nobody reads here. Source: litellm-proxy-extras, migrations up
# to 2026-02, read 2026-11.
TABLES = """
CREATE TABLE "LiteLLM_BudgetTable" ("budget_id" TEXT PRIMARY KEY, "max_budget" DOUBLE PRECISION,
  "soft_budget" DOUBLE PRECISION, "max_parallel_requests" INTEGER, "tpm_limit" BIGINT, "rpm_limit" BIGINT,
  "budget_duration" TEXT);
CREATE TABLE "LiteLLM_OrganizationTable" ("organization_id" TEXT PRIMARY KEY, "organization_alias" TEXT NOT NULL,
  "budget_id" TEXT NOT NULL, "models" TEXT[], "spend" DOUBLE PRECISION NOT NULL DEFAULT 0.0);
CREATE TABLE "LiteLLM_TeamTable" ("team_id" TEXT PRIMARY KEY, "team_alias" TEXT, "organization_id" TEXT,
  "members_with_roles" JSONB NOT NULL DEFAULT '{}', "max_budget" DOUBLE PRECISION, "soft_budget" DOUBLE PRECISION,
  "models" TEXT[], "max_parallel_requests" INTEGER, "tpm_limit" BIGINT, "rpm_limit" BIGINT, "budget_duration" TEXT,
  "blocked" BOOLEAN NOT NULL DEFAULT false);
CREATE TABLE "LiteLLM_ProjectTable" ("project_id" TEXT PRIMARY KEY, "project_alias" TEXT, "team_id" TEXT,
  "budget_id" TEXT);
CREATE TABLE "LiteLLM_VerificationToken" ("token" TEXT PRIMARY KEY, "key_name" TEXT, "key_alias" TEXT,
  "spend" DOUBLE PRECISION NOT NULL DEFAULT 0.0, "expires" TIMESTAMP(3), "models" TEXT[],
  "aliases" JSONB NOT NULL DEFAULT '{}', "user_id" TEXT, "team_id" TEXT, "project_id" TEXT,
  "max_parallel_requests" INTEGER, "blocked" BOOLEAN, "tpm_limit" BIGINT, "rpm_limit" BIGINT,
  "max_budget" DOUBLE PRECISION, "budget_duration" TEXT, "budget_id" TEXT, "organization_id" TEXT);
CREATE TABLE "LiteLLM_UserTable" ("user_id" TEXT PRIMARY KEY, "user_email" TEXT);
CREATE TABLE "LiteLLM_SpendLogs" ("request_id" TEXT PRIMARY KEY, "call_type" TEXT NOT NULL,
  "api_key" TEXT NOT NULL DEFAULT '', "spend" DOUBLE PRECISION NOT NULL DEFAULT 0.0,
  "prompt_tokens" INTEGER NOT NULL DEFAULT 0, "completion_tokens" INTEGER NOT NULL DEFAULT 0,
  "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL, "completionStartTime" TIMESTAMP(3),
  "model" TEXT NOT NULL DEFAULT '', "model_id" TEXT DEFAULT '', "model_group" TEXT DEFAULT '',
  "custom_llm_provider" TEXT DEFAULT '', "team_id" TEXT, "end_user" TEXT, "status" TEXT);
"""
KNOWN, UNKNOWN = "sk-" + "known-to-its-owner", "sk-" + "lost-to-everybody"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def fill(url: str) -> None:
    source = await asyncpg.connect(url)
    try:
        await source.execute(TABLES)
        await source.execute(f"""
            INSERT INTO "LiteLLM_BudgetTable" VALUES ('b1', 100, NULL, NULL, NULL, NULL, '30d'),
              ('b2', 2, NULL, 3, NULL, 40, NULL);
            INSERT INTO "LiteLLM_OrganizationTable" VALUES ('o1', 'Acme', 'b1', NULL, 0);
            INSERT INTO "LiteLLM_TeamTable" VALUES ('t1', 'Search', 'o1', '[{{"user_id": "u1"}}]', 5.5, 3,
              ARRAY['gpt-4o'], NULL, 9000, 60, '7d', false), ('t2', NULL, NULL, '{{}}', NULL, NULL, NULL, NULL, NULL,
              NULL, NULL, false);
            INSERT INTO "LiteLLM_ProjectTable" VALUES ('p1', 'Ranking', 't1', 'b2');
            INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, models, team_id, project_id, blocked,
              rpm_limit, max_budget, budget_duration, budget_id, expires) VALUES
              ('{sha(KNOWN)}', 'sk-...wner', 'web', NULL, 't1', NULL, NULL, 7, 1.25, '1d', NULL, NULL),
              ('{sha(UNKNOWN)}', 'sk-...body', 'batch', ARRAY['claude'], NULL, 'p1', NULL, NULL, NULL, NULL, 'b2',
                 NULL),
              ('{sha("c")}', 'sk-...cccc', NULL, ARRAY['all-proxy-models'], NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                 '2031-01-01'),
              ('{sha("d")}', 'sk-...dddd', 'gone', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2020-01-01'),
              ('{sha("e")}', 'sk-...eeee', 'stopped', NULL, NULL, NULL, true, NULL, NULL, NULL, NULL, NULL);
            INSERT INTO "LiteLLM_UserTable" VALUES ('u1', 'ann@example.com');
            INSERT INTO "LiteLLM_SpendLogs" SELECT 'r' || n, 'acompletion',
              CASE WHEN n % 3 = 0 THEN '{sha(KNOWN)}' WHEN n % 3 = 1 THEN '{sha(UNKNOWN)}' ELSE '{sha("deleted")}' END,
              0.000125, 100, 20, TIMESTAMP '2026-10-01' + n * INTERVAL '1 hour', TIMESTAMP '2026-10-01 00:00:02' +
              n * INTERVAL '1 hour', NULL, 'openai/gpt-4o', 'm', 'gpt-4o', 'openai', 't1', NULL,
              CASE WHEN n = 4 THEN 'failure' ELSE 'success' END FROM generate_series(1, 700) AS n;
        """)
    finally:
        await source.close()


@pytest.fixture
def litellm(databases: Any) -> Iterator[str]:
    """LiteLLM's database, in a real PostgreSQL."""
    with databases.clone() as url:
        plain = url.replace("postgresql+asyncpg", "postgresql")
        services.in_thread(fill(plain))
        yield plain


def test_keys_budgets_teams_and_spending_come_over_once(litellm: str, fresh_database_url: str, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"{KNOWN}\nsk-not-in-the-database-at-all\n")
    ours: dict[str, Any] = {"cwd": tmp_path, "DATABASE_URL": fresh_database_url}
    farebox("migrate", **ours)
    move = ["import", "litellm", "--database", litellm, "--keys", "keys.txt"]

    tried = farebox_json(*move, "--dry-run", **ours)
    assert tried["requests"] == 700
    assert {key["key"] for key in tried["keys"]} == {None}
    assert farebox_json("keys", "list", **ours) == {"keys": []}
    assert farebox_json("ledger", "organisations", **ours) == {"organisations": []}

    told = farebox_json(*move, **ours)
    keys = {key["name"]: key for key in told["keys"]}
    assert set(keys) == {"web", "batch", "sk-...cccc"}
    assert keys["web"]["key"] is None
    assert keys["batch"]["key"].startswith("fbx-")
    left, changed = whys(told["not_carried"]), whys(told["changed"])
    assert left["key gone"] == "expired"
    assert "blocked" in left["key stopped"]
    assert "re-issued" in changed["key batch"]
    assert "stricter" in changed["budget of team Search"]
    assert "1 rows of LiteLLM_UserTable" in left
    assert "members of team Search (1)" in left

    shown = {key["name"].partition(" (")[0]: key for key in farebox_json("keys", "list", **ours)["keys"]}
    assert (shown["web"]["project"], shown["web"]["budget"], shown["web"]["rpm"]) == ("Search", "1.25 USD day", 7)
    assert shown["web"]["models"] == ["gpt-4o"]
    assert (shown["batch"]["project"], shown["batch"]["budget"]) == ("Ranking", "2.00 USD total")
    assert (shown["batch"]["rpm"], shown["batch"]["parallel"], shown["batch"]["models"]) == (40, 3, ["claude"])
    assert shown["sk-...cccc"]["models"] is None
    assert shown["sk-...cccc"]["expires"].startswith("2031-01-01")
    quotas = farebox_json("quotas", "list", **ours)
    assert {(b["scope"], b["limit_usd"], b["window"]) for b in quotas["budgets"]} == {
        ("organisation", "100.00", "month"), ("team", "5.50", "month"), ("project", "2.00", "total"),
        ("key", "1.25", "day"), ("key", "2.00", "total"),
    }  # fmt: skip
    assert {(row["scope"], row["unit"], row["amount"]) for row in quotas["limits"]} == {
        ("team", "requests", 60), ("team", "tokens", 9000),
    }  # fmt: skip

    usage = farebox_json("usage", "--by", "project", **ours)
    assert {line["name"]: line["requests"] for line in usage["lines"]} == {"Search": 466, "Ranking": 234}
    assert usage["total_charge_pusd"] == 700 * 125_000_000
    assert farebox_json("ledger", "trial", **ours)["sound"] is True
    assert {o["name"]: o["left_usd"] for o in farebox_json("ledger", "organisations", **ours)["organisations"]} == {
        "Acme": "0.00", "LiteLLM": "0.00",
    }  # fmt: skip
    organisation = next(
        o["id"] for o in farebox_json("ledger", "organisations", **ours)["organisations"] if o["name"] == "Acme"
    )
    assert farebox_json("invoice", organisation, "2026-10", **ours)["differing_pusd"] == 0

    again = farebox_json(*move, **ours)
    assert (again["keys"], again["requests"]) == ([], 0)
    assert farebox_json("usage", **ours)["total_charge_pusd"] == usage["total_charge_pusd"]
    assert len(farebox_json("keys", "list", **ours)["keys"]) == 3


def test_a_key_whose_text_is_known_works_on_as_it_is(litellm: str, running: Up) -> None:
    (running.folder / "keys.txt").write_text(KNOWN)
    farebox("import", "litellm", "--database", litellm, "--keys", "keys.txt", "--no-history", cwd=running.folder)
    for text, status in ((KNOWN, 200), (UNKNOWN, 401)):
        headers = {"authorization": f"Bearer {text}"}
        assert httpx.get(f"{running.ready['base_url']}/v1/models", headers=headers).status_code == status


def test_a_database_that_is_away_or_none_is_said(tmp_path: Path) -> None:
    farebox("migrate", cwd=tmp_path)
    for url in ("postgres://u:pass-word@127.0.0.1:9/litellm", "mysql://x", "nonsense"):
        said = farebox("import", "litellm", "--database", url, cwd=tmp_path, check=3).stderr
        assert "LiteLLM's database" in said
        assert "pass-word" not in said
