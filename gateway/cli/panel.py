"""What `farebox up` prints when all is ready: everything that a newcomer needs next, and one line for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.config import Settings, hide_password

LOCAL_HINT = "the local model is off: install the extra with `pip install 'farebox[local]'`, or drop --no-local"


class Ready(Struct, frozen=True):
    """The facts of a start. key: None when the first key has been revoked. sign_in: one-time link, None once used."""

    base_url: str
    key: str | None
    models: tuple[str, ...]
    dashboard: str
    seconds: float
    data_dir: Path
    database: str
    cache: str
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def line(self) -> dict[str, Any]:
        """The last line of `up`: an interface, as stable as the HTTP API."""
        return {
            "base_url": self.base_url,
            "key": self.key,
            "models": list(self.models),
            "dashboard": self.dashboard,
        }


def describe_database(settings: Settings) -> str:
    scheme = settings.database_url.partition("://")[0].partition("+")[0]
    return "sqlite" if scheme == "sqlite" else hide_password(settings.database_url)


def show(ready: Ready) -> None:
    """Print the panel on standard output."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("data", str(ready.data_dir))
    facts.add_row("runs on", f"{ready.database}, {ready.cache}")
    facts.add_row("models", ", ".join(ready.models[:6]) + (" ..." if len(ready.models) > 6 else "") or "none yet")
    facts.add_row("providers", ", ".join(ready.providers) or "none yet")
    title = Text(f"Farebox is ready in {ready.seconds:.1f} s at {ready.base_url}", style="bold green")
    console.print(Panel(facts, title=title, title_align="left", border_style="green"))
    # Plain lines outside any frame: they are there to be copied.
    console.print(instructions(ready), highlight=False, markup=False)


def instructions(ready: Ready) -> str:
    """The lines to copy."""
    key = ready.key or "YOUR-KEY"
    model = ready.models[0] if ready.models else "MODEL"
    lines = [
        "Ask something:",
        f"  curl -N {ready.base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Say hello"}}]}}\'',
        "",
        f"Dashboard: {ready.dashboard}",
        "",
        "Point a client at it:",
        f"  OpenAI     export OPENAI_BASE_URL={ready.base_url}/v1 OPENAI_API_KEY={key}",
        f"  Anthropic  export ANTHROPIC_BASE_URL={ready.base_url} ANTHROPIC_AUTH_TOKEN={key}",
        f"  Gemini     export GOOGLE_GEMINI_BASE_URL={ready.base_url} GEMINI_API_KEY={key}",
        "",
        "Then:",
        "  farebox keys create --project demo --budget 0.01usd --rpm 60     a key that can spend one cent",
        "  farebox usage --by key                                           what was spent, to the pico-dollar",
        "  export GROQ_API_KEY=... (or OPENAI_, ANTHROPIC_, ...) and start again: that provider is on",
        "",
    ]
    if ready.key is None:
        lines += ["The first key is revoked or unknown here: `farebox keys create --project demo` makes another.", ""]
    lines += [f"Note: {note}" for note in ready.notes]
    return "\n".join(lines)
