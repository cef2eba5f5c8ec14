"""Faults inside: numbers that are none, files that are missing or wrong. Each a clear error; the engine lives on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from local_backend.errors import BadLogits, ModelUnavailable
from local_backend.forward import Pass
from local_backend.messages import AddRequest
from local_backend.model_runner import ModelRunner
from local_backend.model_text import ModelText
from local_backend.pictures import Pictures
from tests.local_backend.support import greedy, make_engine, make_tiny_model, run_all, settings


@pytest.mark.parametrize("at", [0, 3])
def test_numbers_that_are_none_end_one_answer_and_no_other(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In the first step, where prompts are computed, and in the middle of an answer."""
    engine = make_engine(tiny, block_size=4)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13] * 9]
    alone = [run_all(make_engine(tiny, block_size=4), [prompt], greedy(8))[0] for prompt in prompts]
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    whole: Callable[..., torch.Tensor] = runner.forward

    def broken(wanted: Pass, pictures: dict[int, Pictures]) -> torch.Tensor:
        logits = whole(wanted, pictures)
        if engine.steps == at:
            # Spans are sorted within a pass: find the row of the second sequence by its blocks.
            table = next(seq for seq in engine.scheduler.running if seq.id == 1).block_table
            logits[[span.table for span in wanted.spans].index(table)] = float("nan")
        return logits

    monkeypatch.setattr(runner, "forward", broken)
    for id_, prompt in enumerate(prompts):
        engine.take(AddRequest(id_, prompt, greedy(8)))
    said: dict[int, list[int]] = {0: [], 1: [], 2: []}
    failed = []
    while engine.has_work:
        output = engine.step()
        failed += output.failed
        for token in output.tokens:
            said[token.id].append(token.token)
        engine.scheduler.blocks.check(engine.scheduler.running)
    assert [(f.id, f.code) for f in failed] == [(1, BadLogits.code)]
    assert said == {0: alone[0], 1: alone[1][:at], 2: alone[2]}
    assert run_all(engine, [prompts[1]], greedy(8)) == [alone[1]], "and it can be asked again"


def test_a_model_folder_without_its_tokenizer_is_refused_by_the_files_name(tiny: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        (folder / name).unlink()
        with pytest.raises(ModelUnavailable, match=name):
            ModelText.read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"intermediate_size": 80}, "has shape"),
        ({"num_hidden_layers": 3}, "no tensor 'model.layers.2"),
        ({"architectures": ["SomebodysForCausalLM"]}, "SomebodysForCausalLM"),
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    make_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelUnavailable, match=said):
        ModelRunner(tmp_path, settings())
