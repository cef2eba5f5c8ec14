"""The Helm chart renders, and Kubernetes would take every object of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.environments import python_of

ROOT = Path(__file__).parents[2]
NEEDS = ("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0", "pyyaml")


@pytest.mark.timeout(300)
def test_every_object_is_one_that_kubernetes_takes(tmp_path: Path) -> None:
    if os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: rendering the Helm chart fetches 400 MB; FAREBOX_TEST_SLOW=1 does")
    python = python_of(tmp_path / "venv", NEEDS)
    ran = subprocess.run(
        [python, ROOT / "tests" / "deploy" / "render.py", ROOT / "deploy" / "helm" / "farebox"],
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("StatefulSet") == 7
    assert ran.stdout.count("LeaderWorkerSet") == 1
    assert ran.stdout.count("ScaledObject") == 2
