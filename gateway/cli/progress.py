"""A progress bar for a model's download."""

from __future__ import annotations

from pathlib import Path

from gateway.embedded.engine import PullEvent, pull


async def pull_with_progress(model: str, data_dir: Path, *, quiet: bool = False) -> Path:
    """As `gateway.embedded.engine.pull`. The bar is on standard error, and only where there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(f"fetching {model}", total=None)

        def show(event: PullEvent) -> None:
            if event.event == "progress":
                bar.update(task, completed=event.done, total=event.total, description=event.note or f"fetching {model}")

        return await pull(model, data_dir, show)
