"""What guessing ahead wins: CPU time and steps for one stream of SmolLM2, by where the guesses come from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from local_backend.config import Settings
from local_backend.engine import Engine, build
from local_backend.messages import AddRequest, Configure, Sampling
from local_backend.tokenizer import Tokenizer

PROMPTS = {
    "code, repeated": "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\n" * 3
    + "def add(a, b):\n",
    "free text": "Write a few sentences about the sea and the people who live from it.\n\nThe sea",
}
TOKENS = 96
WAYS: dict[str, dict[str, Any]] = {
    "off": {},
    "ngram": {"speculation": "ngram"},
    "draft: itself in int8": {"speculation": "draft", "draft_quantization": "int8"},
    "draft: itself in int4wo": {"speculation": "draft", "draft_quantization": "int4wo"},
}


def table(folder: Path) -> dict[str, dict[str, Any]]:
    """One row a way and text, greedy and drawn by chance."""
    rows: dict[str, dict[str, Any]] = {}
    tokenizer = Tokenizer(folder)
    for way, changes in WAYS.items():
        draft = {"draft_model": str(folder)} if "draft" in way else {}
        settings = Settings(
            model=str(folder),
            data=str(folder.parent),
            device="cpu",
            max_model_len=1024,
            draft_tokens=4,
            **changes,
            **draft,
        )
        engine, _ = build(folder, Configure(settings, str(folder)))
        assert isinstance(engine, Engine)
        for number, (name, text) in enumerate(PROMPTS.items()):
            for temperature in (0.0, 0.8):
                id_ = 10 * number + int(10 * temperature)
                rows[f"{way}; {name}; {temperature}"] = answer(
                    engine, id_, tokenizer.encode(text, special=False), temperature
                )
    return rows


def answer(engine: Engine, id_: int, prompt: list[int], temperature: float) -> dict[str, Any]:
    """One answer of fixed length. CPU time is that of the whole process, all threads."""
    engine.take(AddRequest(id_, prompt, Sampling(max_tokens=TOKENS, temperature=temperature, seed=7)))
    engine.step()  # the prompt
    guess, steps, cpu, begun = engine.speculation, engine.steps, time.process_time(), time.monotonic()
    before = (guess.proposed, guess.accepted) if guess else (0, 0)
    while engine.has_work:
        engine.step()
    return {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.monotonic() - begun, 2),
        "steps": engine.steps - steps,
        "guessed": guess.proposed - before[0] if guess else 0,
        "held": guess.accepted - before[1] if guess else 0,
    }
