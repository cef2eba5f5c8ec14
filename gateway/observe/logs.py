"""Log lines: structlog, one JSON object a line on a server, coloured text on a terminal, always on standard error.

Standard output belongs to answers: the ready panel, the last JSON line of `up`, what `--json` prints.
"""

from __future__ import annotations

import contextlib
import logging
import logging.config
import sys
from typing import Any, TextIO

import structlog

from gateway.config import LogSettings
from gateway.observe.crashes import noticed
from gateway.observe.redact import redact
from gateway.observe.seldom import SeldomFilter

# Chatty below warning, and what they say at info we say ourselves.
_QUIET = ("alembic", "aiosqlite", "httpx", "httpcore", "asyncio", "sqlalchemy", "uvicorn.access", "litestar")


class Lossy:
    """A text stream whose writes never fail: a log on a full disk or a closed pipe must not fail the request that it
    tells of. What was lost is counted, and said before the next line that can be written."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lost = 0

    def write(self, text: str) -> int:
        try:
            if self._lost:
                self._out.write(f"{self._lost} log writes before this one were lost\n")
                self._lost = 0
            return self._out.write(text)
        except (OSError, ValueError):
            self._lost += 1
            return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._out.flush()

    def isatty(self) -> bool:
        return self._out.isatty()


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Set up structlog and route the standard library's loggers (uvicorn, SQLAlchemy, ...) through the same lines."""
    out: TextIO = Lossy(sys.stderr if stream is None else stream)  # type: ignore[assignment]
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    as_json = settings.format == "json" or (settings.format == "auto" and not out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks become text before `redact` runs, so that a secret in an exception's message is seen by it.
    last: list[Any]
    if as_json:
        last = [structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    last = [noticed, structlog.processors.format_exc_info, redact, *last]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(level, logging.WARNING))
    # It warns of each request that is no HTTP, which is whatever strangers send; metrics count them.
    told = logging.getLogger("uvicorn.error")
    told.filters[:] = [SeldomFilter()]
