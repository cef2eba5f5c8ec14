"""`farebox providers`: who we can ask, and where that was said."""

from __future__ import annotations

from cyclopts import App

from gateway.cli.common import DEFAULTS, OK, Common, emit, make_table

app = App(name="providers")


@app.command(name="list")
def list_(*, common: Common = DEFAULTS) -> int:
    """Show the configured providers. Shows where each secret comes from, never the secret."""
    settings = common.settings()
    rows = []
    for name, provider in settings.providers.items():
        unread = [e for e in settings.missing_secrets() if e.path.startswith(f"providers.{name}.")]
        rows.append(
            {
                "provider": name,
                "kind": provider.kind,
                "enabled": provider.enabled,
                "base_url": provider.base_url,
                "region": provider.region,
                "credential": {key: repr(secret) for key, secret in provider.credential.items()},
                "ready": provider.enabled and not unread,
            }
        )

    def table() -> object:
        if not rows:
            return "none yet: export a provider's key (OPENAI_API_KEY, ANTHROPIC_API_KEY, ...) and restart"
        cells = [
            [
                row["provider"],
                row["kind"],
                "yes" if row["ready"] else "no",
                row["base_url"] or row["region"] or "",
                ", ".join(f"{key}: {value}" for key, value in row["credential"].items()),  # type: ignore[attr-defined]
            ]
            for row in rows
        ]
        return make_table(["provider", "kind", "ready", "address", "credential"], cells)

    emit(common, {"providers": rows}, table)
    return OK
