"""Checkpoints of FSDP and DeepSpeed become folders whose weights are, to the bit, those that were trained."""

from __future__ import annotations

import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from local_backend.errors import ModelUnavailable
from local_backend.training import convert, load_plain, main
from tests.local_backend.support import ROOT, greedy, make_engine, run_all

PROMPTS = [[5, 80, 33, 200, 17], [7, 8, 9]]


def trained(tiny: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny / "model.safetensors")


def write_dcp(folder: Path, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """As a trainer saves model and optimizer together."""
    state: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    state |= {f"optimizer.state.{name}.exp_avg": torch.zeros_like(tensor) for name, tensor in weights.items()}
    dcp.save(state | {"epoch": 3}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


def write_zero(folder: Path, weights: dict[str, torch.Tensor], stage: int, world: int) -> None:
    """DeepSpeed's file layout, with an object of its own inside. Source: deepspeed/utils/zero_to_fp32.py, 2026-11."""
    folder.mkdir()
    names = sorted(weights)
    groups = [names[: len(names) // 2], names[len(names) // 2 :]]
    shapes = [OrderedDict((name, weights[name].shape) for name in group) for group in groups]
    strange = types.ModuleType("deepspeed_stand_in")
    strange.LossScaler = type("LossScaler", (), {"__module__": "deepspeed_stand_in"})  # type: ignore[attr-defined]
    sys.modules["deepspeed_stand_in"] = strange
    try:
        for rank in range(world):
            state: dict[str, Any] = {"zero_stage": stage, "partition_count": world, "scaler": strange.LossScaler()}
            if stage == 3:
                pieces = []
                for name in names:
                    each = -(-weights[name].numel() // world)
                    filled = torch.cat([weights[name].flatten(), torch.zeros(each * world - weights[name].numel())])
                    pieces.append(filled[rank * each : (rank + 1) * each])
                state["fp32_flat_groups"] = [torch.cat(pieces)]
            else:
                parts = []
                for group in groups:
                    flat = torch.cat([weights[name].flatten() for name in group])
                    each = -(-len(flat) // world)
                    filled = torch.cat([flat, torch.zeros(each * world - len(flat))])
                    parts.append(filled[rank * each : (rank + 1) * each])
                state["single_partition_of_fp32_groups"] = parts
            torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        whole = {"param_shapes": shapes, "buffer_names": [], "module": {}, "shared_params": {}}
        torch.save(whole, folder / "mp_rank_00_model_states.pt")
    finally:
        del sys.modules["deepspeed_stand_in"]


@pytest.mark.parametrize("layout", ["dcp", "dcp under a prefix", "zero 2", "zero 3"])
def test_a_training_checkpoint_is_served_as_it_was_trained(layout: str, tiny: Path, tmp_path: Path) -> None:
    weights = trained(tiny)
    if layout.startswith("dcp"):
        write_dcp(tmp_path / "step", weights, "app.model." if "prefix" in layout else "")
    else:
        write_zero(tmp_path / "step", weights, int(layout[-1]), world=3)
    given = [str(tmp_path / "step"), str(tmp_path / "served"), "--base", str(tiny)]
    if layout == "zero 2":  # as a user calls it
        done = subprocess.run([sys.executable, "-m", "gateway", "engine", "convert", *given], cwd=ROOT, timeout=120)
        assert done.returncode == 0
    else:
        assert main(given) == 0
    found = load_file(tmp_path / "served" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    want = run_all(make_engine(tiny), PROMPTS, greedy(6))
    assert run_all(make_engine(tmp_path / "served"), PROMPTS, greedy(6)) == want


def test_what_cannot_be_converted_is_said_and_leaves_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "served"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match="neither"):
        convert(tmp_path / "empty", tiny, target)
    write_zero(tmp_path / "zero", trained(tiny), 2, world=2)
    (tmp_path / "zero" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelUnavailable, match="written by 2 ranks, and the files of 1"):
        convert(tmp_path / "zero", tiny, target)
    (tmp_path / "zero" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"PK short")
    with pytest.raises(ModelUnavailable, match="cannot read"):
        convert(tmp_path / "zero", tiny, target)
    write_dcp(tmp_path / "step", {"something.else": torch.zeros(3)}, "")
    assert main([str(tmp_path / "step"), str(target), "--base", str(tiny)]) == 1
    assert "0 tensors named" in capsys.readouterr().err
    with pytest.raises(ModelUnavailable, match="exists"):
        convert(tmp_path / "step", tiny, tmp_path)
    assert not target.exists()


class Trap:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(2), "trap": Trap(tmp_path / "sprung")}, tmp_path / "x.pt")
    assert torch.equal(load_plain(tmp_path / "x.pt")["weights"], torch.ones(2))
    assert not (tmp_path / "sprung").exists()
