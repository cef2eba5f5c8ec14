"""The Triton kernels against the plain forms, in Triton's interpreter: indexing and arithmetic, on any CPU.

Wants the `triton` wheel (some 290 MB), which torch for CPU does not bring: without it this module skips, and says so.
`FAREBOX_TEST_TRITON=/folder` names a place where it was unpacked: pip install --no-deps --target /folder triton."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("FAREBOX_TEST_TRITON", "")

pytestmark = pytest.mark.skipif(
    not FOLDER and find_spec("triton") is None,
    reason="NO TRITON HERE: the CUDA kernels are NOT tested by this run (FAREBOX_TEST_TRITON says where it lies)",
)


@pytest.mark.timeout(400)
def test_every_kernel_equals_its_plain_form_in_the_interpreter() -> None:
    # A process of its own: the interpreter is chosen by the environment when triton is imported.
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), FOLDER))),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.local_backend.triton_parity"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout
