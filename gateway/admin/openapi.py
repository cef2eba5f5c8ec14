"""The admin API's OpenAPI document. `python -m gateway.admin.openapi` writes it for the dashboard's generated types."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig

from gateway.admin.problems import MEDIA_TYPE
from gateway.admin.routes import admin_routes
from gateway.admin.services import Services
from gateway.errors import Unavailable

PATH: Final = Path(__file__).with_name("dashboard") / "openapi.json"


def document() -> dict[str, Any]:
    """As OpenAPI 3.1, from the handlers alone: nothing runs and nothing is connected."""
    found = Litestar(admin_routes(_nothing), openapi_config=config()).openapi_schema.to_schema()
    corrected: dict[str, Any] = _corrected(found)
    return corrected


def _corrected(value: Any) -> Any:
    """What Litestar cannot know: alternatives of a union may overlap, and errors are problems (`problems.py`)."""
    if isinstance(value, list):
        return [_corrected(each) for each in value]
    if not isinstance(value, dict):
        return value
    out = {"anyOf" if name == "oneOf" else name: _corrected(each) for name, each in value.items()}
    if isinstance(text := out.get("description"), str):
        out["description"] = inspect.cleandoc(text)  # Docstrings lose their indentation only from Python 3.13 on.
    for status, answer in out.get("responses", {}).items():
        if status.startswith(("4", "5")) and isinstance(answer, dict):
            answer["content"] = {MEDIA_TYPE: {"schema": _PROBLEM}}
    return out


_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "todo", "instance"],
    "properties": {
        "status": {"type": "integer"},
        **{name: {"type": "string"} for name in ("type", "title", "detail", "todo", "instance", "field")},
        "faults": {"type": "array", "items": {"type": "object"}},
    },
}


def config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Farebox admin API",
        version="1",
        description="Sign in at /ui, or send an API token as Bearer. Amounts are exact decimal US dollars as text; "
        "times are RFC 3339 in UTC. Errors are RFC 9457 problems with what to do in `todo`.",
        use_handler_docstrings=True,
    )


def encoded() -> bytes:
    return msgspec.json.format(msgspec.json.encode(document(), order="sorted"), indent=1) + b"\n"


def _nothing() -> Services:
    raise Unavailable("no gateway is running in this process")


if __name__ == "__main__":
    PATH.write_bytes(encoded())
