"""`python -m tests.conformance.langchain`: langchain-tests over an emulated yard, for one model of each dialect.

The packages pin older SDKs than ours, so they live in a virtual environment of their own, made on first use in the
folder that `--venv` names and kept there. `--model` may be given several times.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conformance.environments import home_of, python_of

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).with_name("langchain_suite.py")
PACKAGES = (
    "langchain-tests==1.1.9",
    "langchain-openai==1.7.3",
    "langchain-anthropic==1.7.7",
    "langchain-google-genai==4.4.2",
    "langchain-aws==1.9.1",
    "pytest",
    "pytest-timeout",
)
# Each is judged over dialects that are not its own: what we write ourselves.
MODELS = ("openai/echo-1", "anthropic/claude-sonnet-4-5", "gemini/gemini-3-pro-preview", "bedrock/amazon.nova-pro-v1:0")


def run(python: Path, url: str, key: str, model: str) -> int:
    """pytest's exit status. It knows nothing of our configuration, nor our tests of it."""
    told = {"FAREBOX_SUITE_URL": url, "FAREBOX_SUITE_KEY": key, "FAREBOX_SUITE_MODEL": model}
    words = "-q -rfE --tb=short --noconftest -p no:cacheprovider --timeout 60 -o asyncio_mode=auto"
    # One loop for all: some of the packages keep their connections from test to test.
    words += " -o asyncio_default_fixture_loop_scope=session -o asyncio_default_test_loop_scope=session"
    command = [python, "-m", "pytest", *words.split(), "-c", os.devnull, "--rootdir", SUITE.parent, SUITE]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=SUITE.parent, env=environment | told, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.langchain")
    parser.add_argument("--venv", type=Path, default=home_of("langchain"))
    parser.add_argument("--model", action="append", help="instead of " + ", ".join(MODELS))
    asked = parser.parse_args()
    python = python_of(asked.venv, PACKAGES)
    command = [sys.executable, "-m", "tests.emulators", "--with-gateway", "--port", "0"]
    yard = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    failed = []
    try:
        assert yard.stdout is not None
        told = json.loads(yard.stdout.readline())
        for model in asked.model or MODELS:
            print(f"=== {model}", flush=True)
            if run(python, told["base_url"], told["key"], model):
                failed.append(model)
    finally:
        yard.send_signal(signal.SIGTERM)
        yard.wait(30)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
