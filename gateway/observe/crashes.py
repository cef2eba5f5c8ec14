"""Unforeseen errors to Sentry (`telemetry.sentry_dsn`, the extra `farebox[sentry]`): of log lines of level error the
exception, with its traceback and nothing else. No bodies, headers, local variables, breadcrumbs or host names, and
texts pass the same redaction as log lines. Source: sentry-sdk 2.75, "Envelopes", read 2026-11."""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from typing import Any

from gateway.observe.redact import redact_text

Report = Callable[[BaseException, dict[str, str]], None]

_report: Report | None = None
# What of a log line goes along: ids, never texts.
_KEPT = ("request_id", "trace_id")


def report_to(dsn: str) -> Callable[[], None]:
    """From now on. Returns: what sends the rest and ends it; it blocks. Raises: ImportError; ValueError: a bad DSN."""
    import sentry_sdk

    client = sentry_sdk.Client(
        dsn=dsn,
        default_integrations=False,
        auto_enabling_integrations=False,
        include_local_variables=False,
        include_source_context=False,
        max_breadcrumbs=0,
        max_request_body_size="never",
        server_name="",
        auto_session_tracking=False,
        before_send=_scrubbed,
    )

    def report(error: BaseException, tags: dict[str, str]) -> None:
        with sentry_sdk.new_scope() as scope:
            scope.set_client(client)
            scope.set_tags(tags)
            scope.capture_exception(error)

    global _report
    _report = report

    def end() -> None:
        global _report
        _report = None
        client.close(timeout=2.0)

    return end


def noticed(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: before the exception becomes text."""
    if _report is not None and method in ("error", "exception", "critical"):
        found = event.get("exc_info")
        error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
        if isinstance(error, BaseException):
            _report(error, {name: str(event[name]) for name in _KEPT if name in event})
    return event


def _scrubbed(event: Any, _hint: Any) -> Any:
    kept = {name: event[name] for name in ("event_id", "timestamp", "platform", "level", "tags") if name in event}
    exceptions = event.get("exception", {}).get("values", [])
    return kept | {"exception": {"values": [_exception(each) for each in exceptions]}}


def _exception(said: dict[str, Any]) -> dict[str, Any]:
    frames = said.get("stacktrace", {}).get("frames", [])
    places = [{name: frame.get(name) for name in ("module", "function", "lineno", "filename")} for frame in frames]
    return {
        "type": said.get("type"),
        "module": said.get("module"),
        "value": redact_text(str(said.get("value") or ""))[:1000],
        "stacktrace": {"frames": places},
    }
