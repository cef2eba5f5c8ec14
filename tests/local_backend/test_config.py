"""Settings, the memory plan and model configs: good values taken, bad ones named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local_backend.config import BadSetting, core_environment, default_data_dir, load_settings, parse_bytes
from local_backend.errors import ModelUnavailable
from local_backend.memory import free_host_memory, plan_cache
from local_backend.model_config import ModelConfig, read_model_config
from tests.local_backend.support import make_tiny_model, settings

TIGHT: dict[str, Any] = {"itemsize": 4, "device": "cpu", "kv_heads": 2}


def test_flag_beats_environment_beats_default() -> None:
    env = {"FAREBOX_ENGINE_PORT": "9000", "FAREBOX_ENGINE_MAX_RUNNING": "3", "FAREBOX_ENGINE_PREFIX_CACHING": "false"}
    made = load_settings(["m", "--port", "9001", "--kv-cache-bytes", "2GiB", "--die-with-parent"], env)
    assert (made.port, made.max_running, made.prefix_caching, made.block_size) == (9001, 3, False, 16)
    assert (made.kv_cache_bytes, made.die_with_parent, made.model) == (2**31, True, "m")


@pytest.mark.parametrize(
    ("argv", "env", "said"),
    [
        ([], {}, "no model given"),
        (["m"], {"FAREBOX_ENGINE_PORT": "70000"}, "port"),
        (["m", "--dtype", "int3"], {}, "dtype"),
        (["m", "--block-size", "-1"], {}, "block_size"),
        (["m", "--kv-cache-bytes", "2 parsecs"], {}, "parsecs"),
        (["m"], {"FAREBOX_ENGINE_DIE_WITH_PARENT": "perhaps"}, "die_with_parent"),
    ],
)
def test_a_bad_value_names_itself(argv: list[str], env: dict[str, str], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        load_settings(argv, env)


def test_the_key_is_no_flag() -> None:
    assert load_settings(["m"], {"FAREBOX_ENGINE_KEY": "k"}).key == "k"
    with pytest.raises(SystemExit):
        load_settings(["m", "--key", "k"], {})


@pytest.mark.parametrize(("text", "size"), [("1024", 1024), ("1k", 1000), ("1.5GiB", 3 * 2**29), ("2 MB", 2_000_000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_data_folder() -> None:
    assert default_data_dir({"FAREBOX_DATA": "/x"}) == Path("/x")
    assert default_data_dir({"XDG_DATA_HOME": "/y"}) == Path("/y/farebox")


def test_core_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert core_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert core_environment()["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    make_tiny_model(tmp_path)  # one token: 2 x 2 layers x 2 heads x 8 x 4 bytes = 256
    return read_model_config(tmp_path)


def test_cache_is_no_larger_than_useful_and_shortens_the_context_if_it_must(config: ModelConfig) -> None:
    few = settings(max_running=2, kv_cache_bytes=None)
    assert plan_cache(config, few, max_model_len=512, free_bytes=2**34, **TIGHT).blocks == 2 * 512 // 16
    short = plan_cache(config, few, max_model_len=512, free_bytes=2 * 100 * 256, **TIGHT)
    assert (short.blocks, short.max_model_len) == (6, 96)


def test_a_cache_that_cannot_serve_is_refused_with_the_arithmetic(config: ModelConfig) -> None:
    with pytest.raises(ModelUnavailable, match=r"cannot hold one context: one token takes 256 bytes"):
        plan_cache(
            config, settings(max_model_len=512, kv_cache_bytes=51_200), max_model_len=512, free_bytes=10**9, **TIGHT
        )
    with pytest.raises(ModelUnavailable, match="does not fit"):
        plan_cache(config, settings(kv_cache_bytes=10**9), max_model_len=512, free_bytes=10**8, **TIGHT)


def test_free_memory_is_something() -> None:
    assert 2**20 < free_host_memory() < 2**50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_models_not_served_are_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    make_tiny_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(ModelUnavailable, match=said):
        read_model_config(tmp_path)


def test_llama_4x_configs_read_like_5x_ones(tmp_path: Path) -> None:
    make_tiny_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("rope_parameters")
    raw |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    advised = {"eos_token_id": [2, 3], "temperature": 0.2, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(advised))
    config = read_model_config(tmp_path)
    assert config.rope_theta == 500.0
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 2.0
    assert config.eos_token_ids == (2, 3)
    assert (config.temperature, config.top_p, config.top_k) == (0.2, 0.9, 0)


def test_the_front_never_imports_torch() -> None:
    code = "import sys, local_backend.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
