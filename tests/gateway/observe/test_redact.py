"""No secret reaches a log line, whatever way it takes."""

import io
import json
import logging

import pytest
import structlog

from billing.usage import Meter, Outcome, UsageRecord
from gateway.config import LogSettings
from gateway.observe import logs
from gateway.observe.metrics import MODELS_MAX, Metrics
from gateway.observe.redact import redact_text, redact_value

SECRETS = [
    "fbx-C2PcpDbJZ_TY4uB8eQh4G56R5Wx9XbBwYLmCKbysyvjiDQLMBbYJo85xLKTw",
    "sk-proj-abcdefghijklmnop1234",
    "sk-ant-api03-abcdefghijklmnop",
    "gsk_abcdefghijklmnop1234",
    "AIzaSyA-abcdefghijklmnop",
    "AKIAABCDEFGHIJKLMNOP",
    "ya29.a0AfH6SMBabcdefgh",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_in_a_text_is_cut_to_its_public_start(secret: str) -> None:
    shown = redact_text(f"upstream said: invalid key {secret}, sorry")
    assert secret not in shown
    assert secret[-8:] not in shown
    assert shown.startswith("upstream said: invalid key ")
    assert shown.endswith(", sorry")


def test_our_own_key_keeps_the_part_by_which_its_owner_knows_it() -> None:
    assert redact_text(SECRETS[0]) == "fbx-C2PcpDbJZ[hidden]"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://user:pass-word@host/db", "pass-word"),
        ("GET /v1beta/models?key=abc123&alt=sse", "abc123"),
        ("authorization: Bearer abcdefgh.ijkl", "abcdefgh"),
    ],
)
def test_secrets_in_addresses_and_headers(text: str, hidden: str) -> None:
    assert hidden not in redact_text(text)


def test_structure_goes_before_looks() -> None:
    headers = [("Authorization", "anything at all"), ("accept", "x"), ("X-Api-Key", "short")]
    assert redact_value("headers", headers) == [
        ["Authorization", "[hidden]"],
        ["accept", "x"],
        ["X-Api-Key", "[hidden]"],
    ]
    assert redact_value("provider", {"credential": {"api_key": "x"}, "region": "r"}) == {
        "credential": "[hidden]",
        "region": "r",
    }


def test_bodies_are_not_logged() -> None:
    assert "private" not in str(redact_value("body", b"private words"))
    assert "private" not in str(redact_value("request", {"messages": [{"content": "private words"}]}))


def test_every_way_into_the_log_is_redacted() -> None:
    out = io.StringIO()
    logs.configure(LogSettings(level="debug", format="json"), out)
    try:
        log = structlog.get_logger("test")
        log.info("said " + SECRETS[1], key=SECRETS[0], prompt="private words")
        logging.getLogger("some.library").warning("library says %s", SECRETS[2])
        try:
            raise ValueError(f"refused {SECRETS[3]}")
        except ValueError:
            log.exception("failed")
            logging.getLogger("some.library").exception("failed as well")
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers.clear()
    text = out.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 4
    assert "ValueError: refused gsk_[hidden]" in lines[2]["exception"]
    for secret in [*SECRETS[:4], "private words"]:
        assert secret not in text


def test_metrics_count_a_settled_request_and_bound_their_labels() -> None:
    metrics = Metrics()

    def record(alias: str) -> UsageRecord:
        return UsageRecord(
            id="r", at_ns=0, organisation_id="o", project_id="p", key_id="k", end_user=None, alias=alias,
            provider="groq",
            model="m", deployment="d", price_id="x", quantities={Meter.INPUT_TOKENS: 5, Meter.OUTPUT_TOKENS: 7},
            estimated=False, outcome=Outcome.COMPLETED, hold_pusd=0, status=200, dialect="openai_chat",
            first_token_ms=20, duration_ms=300,
        )  # fmt: skip

    metrics.settled(record("chat"), 224_000_000)
    for number in range(MODELS_MAX + 50):
        metrics.settled(record(f"made-up-{number}"), 0)
    metrics.refused("openai_chat", "insufficient_quota")
    metrics.arrived()
    metrics.watch_open_intents(lambda: 3)
    text = metrics.exposition().decode()
    ended = 'dialect="openai_chat",model="chat",outcome="completed",provider="groq",status="200"'
    assert f"farebox_requests_total{{{ended}}} 1.0" in text
    assert 'farebox_metered_total{meter="output_tokens",model="chat",provider="groq"} 7.0' in text
    assert 'farebox_refused_total{code="insufficient_quota",dialect="openai_chat"} 1.0' in text
    assert "farebox_in_flight 1.0" in text
    assert "farebox_open_intents 3.0" in text
    assert 'model="made-up-249"' not in text
    assert 'model="other"' in text
