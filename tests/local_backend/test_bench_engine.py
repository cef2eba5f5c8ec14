"""The benchmark itself still runs: on a toy model, without fetching anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.engine import gpu

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, timeout: int = 280) -> list[str]:
    """Lines of what `python -m tests.bench.engine` printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.engine", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(300)
def test_our_side_prints_one_line_of_figures(tmp_path: Path) -> None:
    (line,) = bench("--json", "--quick", "--tiny", "--no-peers", "--keep", str(tmp_path))
    engines = json.loads(line)["engines"]
    assert set(engines) - {"ours_int16"} == {"ours_fp16", "ours_int8", "ours_int4wo"}
    assert all(figure > 0 for row in engines.values() for figure in row.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the table itself")
def test_the_table_for_gpus_runs_dry_and_says_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run(dry=True) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["variant"] for line in lines[1:]} == {"bf16", "int8", "int4wo", "fp8, kv fp8"}
    assert all(line["tokens_s"] > 0 for line in lines[1:])
    assert gpu.run(dry=False) == 0
    assert capsys.readouterr().out.startswith("NO GPU HERE")


@pytest.mark.timeout(900)
def test_a_short_soak_ends_with_nobody_failed_and_no_block_held() -> None:
    if os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: 25 s of CPU time; FAREBOX_TEST_SLOW=1 soaks for three seconds")
    *lines, last = bench("--soak", "0.05", timeout=880)
    assert not lines
    told = json.loads(last)
    assert told["asked"] > 0
    assert told["failed"] == told["blocks_held"] == 0
