"""What hypothesis' state machines over a real database share."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from billing.db import create_engine

T = TypeVar("T")


class OnSqlite(RuleBasedStateMachine):
    """Rules are no coroutines, but run theirs in one loop. template: a migrated database, which each run copies."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="fbx-machine-"))
        shutil.copy(self.template, self.folder / "farebox.db")
        self.engine = create_engine(f"sqlite:///{self.folder}/farebox.db")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        """Overridden by whoever has more to close, and called last."""
        self.run(self.engine.dispose())
        self.runner.close()
        shutil.rmtree(self.folder)
