"""Virtual environments of their own, for suites whose pins clash with ours."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def home_of(name: str) -> Path:
    """Where an environment is kept that nobody gave another place."""
    return Path.home() / ".cache" / "farebox" / name


def python_of(folder: Path, packages: Sequence[str]) -> Path:
    """The environment's interpreter; the environment is made when it is not there, or holds other packages."""
    python, complete, wanted = folder / "bin" / "python", folder / "complete", "\n".join(packages)
    if not complete.exists() or complete.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        complete.write_text(wanted)
    return python
