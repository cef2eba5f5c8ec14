"""LoRA adapters chosen by each request: what they give is what the model with merged weights gives, in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from local_backend.config import BadSetting, load_settings
from local_backend.errors import ModelUnavailable
from local_backend.messages import AddRequest, Terms
from tests.local_backend.support import greedy, make_engine, make_tiny_model, run_all, running_engine

SIZES = {"q_proj": (48, 48), "v_proj": (16, 48), "o_proj": (48, 48), "up_proj": (96, 48), "down_proj": (48, 96)}
PROMPTS = [[5, 80, 33, 200, 17, 90, 41] * 3, [7, 8, 9], [100, 101, 102, 103], [5, 80, 33, 200]]


def make_adapter(folder: Path, seed: int, rank: int = 4, **changes: Any) -> Path:
    """Random corrections in PEFT's files, as large as the weights, so that greedy answers change."""
    folder.mkdir(parents=True)
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for name, (outs, ins) in SIZES.items():
            part = "self_attn" if name in ("q_proj", "v_proj", "o_proj") else "mlp"
            at = f"base_model.model.model.layers.{layer}.{part}.{name}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(rank, ins, generator=chance) * 0.2
            tensors[f"{at}.lora_B.weight"] = torch.randn(outs, rank, generator=chance) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(SIZES), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def merge(base: Path, adapter: Path, scale: float) -> None:
    """Put the adapter's corrections into the weights of `base`."""
    weights, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for key in [key for key in parts if key.endswith("lora_A.weight")]:
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        correction = parts[key.replace("lora_A", "lora_B")] @ parts[key]
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + scale * correction
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_one_batch_gives_what_merged_weights_give_each(quantization: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base")
    adapters = {"a": make_adapter(tmp_path / "a", 1), "b": make_adapter(tmp_path / "b", 2, rank=2, use_rslora=True)}
    given = ",".join(f"{name}={folder}" for name, folder in adapters.items())
    engine = make_engine(tmp_path / "base", adapters=given, quantization=quantization, token_budget=16, block_size=4)
    order = ["a", "", "b", "a"]
    outputs: dict[int, list[int]] = {}
    for again in (0, 4):  # the second time from the prefix cache, and each from its own adapter's
        for i, (prompt, adapter) in enumerate(zip(PROMPTS, order, strict=True)):
            engine.take(AddRequest(again + i, prompt, greedy(12), "", Terms(adapter=adapter)))
        while engine.has_work:
            for token in engine.step().tokens:
                outputs.setdefault(token.id, []).append(token.token)
    assert engine.scheduler.blocks.hit_tokens > 0
    plain = run_all(make_engine(tmp_path / "base", quantization=quantization), PROMPTS, greedy(12))
    if quantization == "int8":  # merged weights round otherwise; that nobody touches the others is what can be said
        assert (outputs[1], outputs[5]) == (plain[1], plain[1])
        assert outputs[0] != plain[0]
        return
    for name, scale in (("a", 8 / 4), ("b", 8 / 2**0.5)):
        make_tiny_model(tmp_path / f"merged-{name}")
        merge(tmp_path / f"merged-{name}", adapters[name], scale)
        merged = run_all(make_engine(tmp_path / f"merged-{name}"), PROMPTS, greedy(12))
        for i in [i for i, adapter in enumerate(order) if adapter == name]:
            assert merged[i] != plain[i]
            assert outputs[i] == outputs[4 + i] == merged[i]
    assert outputs[1] == outputs[5] == plain[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is of type 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(
    changes: dict[str, Any], said: str, tiny: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "x", 1, **changes)
    with pytest.raises(ModelUnavailable, match=said):
        make_engine(tiny, adapters=f"x={folder}")


def test_an_adapter_of_another_model_or_half_of_one_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "x", 1)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    for tensors, said in (
        ({key: value for key, value in whole.items() if key != f"{at}.lora_B.weight"}, "do not fit each other"),
        (whole | {f"{at}.lora_B.weight": torch.zeros(40, 4)}, "has 48 outputs, not 40"),
        ({key.replace("layers.1", "layers.7"): value for key, value in whole.items()}, r"corrects model.layers.7"),
        ({"whatever": torch.zeros(1)}, "no part of a LoRA"),
    ):
        save_file(tensors, path)
        with pytest.raises(ModelUnavailable, match=said):
            make_engine(tiny, adapters=f"x={folder}")
    path.write_bytes(b"short")
    with pytest.raises(ModelUnavailable, match="cannot read"):
        make_engine(tiny, adapters=f"x={folder}")
    with pytest.raises(ModelUnavailable, match="not batch-invariant"):
        make_engine(tiny, adapters=f"x={folder}", batch_invariant=True)


@pytest.mark.parametrize("given", ["x", "=folder", "x=", "x=a,x=b", "a b=c"])
def test_settings_that_name_no_adapter_stop_the_start(given: str) -> None:
    with pytest.raises(BadSetting, match="name=folder"):
        load_settings(["model", "--adapters", given], {})


def test_clients_ask_for_an_adapter_by_the_models_name(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny")
    folder = make_adapter(tmp_path / "a", 1)
    with (
        running_engine(tmp_path / "tiny", "--adapters", f"a={folder}", "--served-name", "tiny") as engine,
        httpx.Client(base_url=engine.url, timeout=60) as http,
    ):
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["tiny", "tiny:a"]
        assert http.get("/v1/models/tiny:a").json()["parent"] == "tiny"
        body = {"prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        plain, adapted = (
            http.post("/v1/completions", json=body | {"model": name}).raise_for_status().json()
            for name in ("tiny", "tiny:a")
        )
        assert adapted["model"] == "tiny:a"
        assert adapted["choices"][0]["text"] != plain["choices"][0]["text"]
        assert http.post("/v1/completions", json=body | {"model": "tiny:b"}).status_code == 404
