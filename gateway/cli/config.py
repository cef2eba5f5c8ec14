"""`farebox config`: what the settings are, whether they are good, and what can be set."""

from __future__ import annotations

from cyclopts import App

from gateway.cli.common import LOCAL, NOT_WELL, OK, Local, emit, encode
from gateway.config import public
from gateway.config import schema as settings_schema

app = App(name="config")


@app.command
def show(*, common: Local = LOCAL) -> int:
    """Print the settings in force. Secrets are shown as references only."""
    tree = public(common.settings())

    def text() -> str:
        import yaml

        return str(yaml.safe_dump(tree, sort_keys=False)).rstrip()

    emit(common, tree, text)
    return OK


@app.command
def check(*, common: Local = LOCAL) -> int:
    """Read the settings and every secret that they refer to; name the first bad value and what to do."""
    settings = common.settings()
    missing = [str(error) for error in settings.missing_secrets()]
    emit(
        common,
        {"ok": not missing, "missing": missing},
        lambda: "\n".join(missing) or "the settings are good, and every secret they name can be read",
    )
    return NOT_WELL if missing else OK


@app.command
def schema() -> int:
    """Print the JSON Schema of farebox.toml and farebox.yaml, for editors."""
    print(encode(settings_schema()))
    return OK
