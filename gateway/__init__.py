"""The process clients talk to; the only package that knows the others. Read `pipeline.py` first."""

import sys

if "rich" not in sys.modules:
    # structlog loads it wherever it is installed, for tracebacks that are plain text here (`observe/logs.py`): 3 MB of
    # every process. Source: structlog 26.1, dev.py; "sys.modules" in Python's import reference; read 2026-11.
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog.dev  # noqa: F401 - for what it does not find
    finally:
        del sys.modules["rich"]
