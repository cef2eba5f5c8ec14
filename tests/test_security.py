"""The threat model names tests that exist, and what we stand on is under licences we accept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_each_threat_names_a_test_that_exists() -> None:
    text = (ROOT / ".github" / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 15
    known: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"def (test_\w+)", path.read_text()))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, f"no test in: {row}"
        assert set(named) <= known, set(named) - known


def test_the_bill_of_materials_is_whole_and_its_licences_are_accepted() -> None:
    done = subprocess.run([sys.executable, ROOT / "deploy" / "sbom.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {each["name"]: each for each in json.loads(done.stdout)["components"]}
    for name in ("msgspec", "uvicorn", "sqlalchemy", "redis", "h11", "cffi"):
        assert listed[name]["purl"].startswith(f"pkg:pypi/{name}@"), name
