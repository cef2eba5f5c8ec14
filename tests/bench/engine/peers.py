"""The engines that are compared, each a worker process that measures when it is told to and sleeps otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[3]
XLLAMACPP = "xllamacpp"


class PeerFailed(Exception):
    """A worker ended or answered nothing; the message holds the end of what it said."""


class Work(msgspec.Struct, frozen=True):
    """What a worker is asked to do once."""

    streams: int
    prompt: int
    tokens: int
    seed: int = 0


class Peer:
    """One worker, loaded when made."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        self.ready_s: float = self._answer()["ready_s"]

    def measure(self, work: Work) -> dict[str, Any]:
        """Seconds to the last first token, and of each step after it. Raises PeerFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(msgspec.structs.asdict(work)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the worker and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise PeerFailed(f"{self.name}: {self._log.read_text()[-800:]}")


def ours(name: str, model: Path, data: Path, threads: int, **settings: Any) -> Peer:
    """Our engine with these settings; its threads sleep while they wait, as in the real core."""
    given = {"model": str(model), "data": str(data), "threads": threads, "kv_cache_bytes": 256 * 2**20} | settings
    command = [sys.executable, "-m", "tests.bench.engine.ours", json.dumps(given)]
    return Peer(name, command, data / f"{name}.log", {"OMP_WAIT_POLICY": "PASSIVE"})


def llamacpp(
    name: str, python: Path, gguf: Path, data: Path, vocab: int, streams: int, context: int, threads: int
) -> Peer:
    """llama.cpp's server on a GGUF file."""
    arguments = [str(gguf), *map(str, (vocab, streams, context, threads))]
    return Peer(name, [str(python), str(ROOT / "tests/bench/engine/llamacpp.py"), *arguments], data / f"{name}.log")


def vllm(
    name: str, python: Path, model: Path, data: Path, dtype: str, vocab: int, streams: int, context: int, threads: int
) -> Peer:
    """vLLM for CPUs on a model folder, its engine in the worker itself: its CPU time is then the worker's."""
    arguments = [str(model), dtype, *map(str, (vocab, streams, context))]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
    command = [str(python), str(ROOT / "tests/bench/engine/vllm_cpu.py"), *arguments]
    return Peer(name, command, data / f"{name}.log", environment)


def llamacpp_environment(folder: Path) -> Path:
    """A throw-away environment with the xllamacpp wheel, made on first use. Returns: its python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", XLLAMACPP]
        subprocess.run(install, check=True)
    return python
