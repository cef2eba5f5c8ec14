"""The engine under Ray Serve, on a Ray of this machine: answers, streams, grows by waiting tokens, shrinks again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.local_backend.support import make_tiny_model

ROOT = Path(__file__).parents[2]
NEEDS = "ray[serve]==2.60.0"


@pytest.mark.timeout(1800)
def test_replicas_come_with_the_tokens_that_wait_and_go_again(tmp_path: Path) -> None:
    if os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: Ray is 500 MB and a minute; FAREBOX_TEST_SLOW=1 fetches and runs it")
    make_tiny_model(tmp_path / "tiny", max_position_embeddings=32768)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", NEEDS], check=True)
    script = ROOT / "tests" / "deploy" / "ray_engines.py"
    ran = subprocess.run(
        [python, script, tmp_path / "tiny", sys.executable], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert json.loads(ran.stdout.splitlines()[-1])["began_with"] == 1
