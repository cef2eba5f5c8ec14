"""Settings of the engine; the only file of this package that reads the environment.

Every setting has a flag (`--token-budget`), a variable (`FAREBOX_ENGINE_TOKEN_BUDGET`) and a default; the flag wins.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

ENV_PREFIX = "FAREBOX_ENGINE_"
REGISTER_TOKEN = ENV_PREFIX + "REGISTER_TOKEN"

Quantization = Literal["auto", "none", "int16", "int8", "int8wo", "int4wo", "fp8"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class BadSetting(Exception):
    """A setting has a value that cannot be used; the message names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine can be told. None means: decide from the device and the model."""

    model: str
    served_name: str | None = None
    data: str
    host: str = "127.0.0.1"
    port: Port = 8001
    uds: str | None = None
    device: str = "auto"  # cpu, cuda, cuda:1 ...
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Quantization = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] = "auto"
    kernels: Literal["auto", "plain"] = "auto"
    batch_invariant: bool = False
    speculation: Literal["off", "ngram", "draft"] = "off"
    draft_model: str | None = None
    draft_quantization: Quantization = "auto"
    draft_tokens: Positive = 8  # guessed at once, at most
    tensor_parallel: Positive = 1  # processes that share the model's weights
    adapters: str | None = None  # LoRA: name=folder,name=folder
    max_model_len: Positive | None = None
    max_running: Positive = 64  # sequences in one step
    max_waiting: Positive = 512  # sequences beyond those; then 429
    token_budget: Positive | None = None  # tokens in one step
    prompt_tokens: Positive | None = None  # of prompts in a step beside running answers; two more for each of these
    block_size: Positive = 16  # tokens in one KV block
    kv_cache_bytes: Positive | None = None
    kv_host_bytes: Positive | None = None
    image_bytes: Positive = 256 * 2**20  # of the images of all open requests
    prefix_caching: bool = True
    threads: Positive | None = None
    max_body_bytes: Positive = 16 * 2**20
    kv_events: str | None = None
    kv_events_replay: str | None = None
    register: str | None = None
    register_as: str | None = None
    register_token: str | None = None  # the gateway's; from the environment alone
    replica: str | None = None
    advertise: str | None = None
    drain_s: float = 30.0
    request_timeout_s: float | None = None
    watchdog_s: float = 120.0
    die_with_parent: bool = False
    key: str | None = None  # clients must show it as a bearer token; from the environment alone
    log_level: Literal["debug", "info", "warning", "error"] = "info"


HELP = {
    "served_name": "name clients ask for (default: the model's own)",
    "data": "folder for models and converted weights",
    "port": "TCP port; 0 picks a free one and prints it",
    "uds": "serve on this Unix socket instead of TCP",
    "device": "auto, cpu, cuda or cuda:N",
    "dtype": "auto: bfloat16 on CUDA; on CPU float16 weights with float32 arithmetic",
    "quantization": "auto: as the checkpoint has it; none: widened; int16, int8, int8wo, int4wo, fp8: at load",
    "kv_dtype": "numbers in the KV cache (default: as the activations); int8 and fp8 hold two to four times the tokens",
    "kernels": "plain: torch's own operations alone, no compiled or Triton kernels",
    "speculation": "ngram: guess what the text has said before; draft: by a small model that runs ahead",
    "draft_model": "the model that guesses, of the same vocabulary; may be this one in fewer bits",
    "draft_quantization": "as quantization, of the draft model",
    "batch_invariant": "an answer at temperature 0 is the same to the bit, whatever runs beside it",
    "tensor_parallel": "processes that share the weights, each with a GPU of its own (CPU: part of the cores)",
    "adapters": "LoRA adapters in PEFT's form, name=folder,name=folder; clients ask for MODEL:name",
    "max_model_len": "context length in tokens (default: the model's, or what the cache holds)",
    "kv_cache_bytes": "memory for the KV cache, of each rank; accepts 512MiB, 2GiB",
    "kv_host_bytes": "host memory for prefixes that the cache had to give up; they come back by a copy (for GPUs)",
    "image_bytes": "memory for the images of open requests, if the model takes any; more are told to come back",
    "token_budget": "tokens computed in one step, prefill and decode together",
    "prompt_tokens": "of prompts in a step beside running answers, and two more for each of those (default: CPU 16, "
    "CUDA what the budget leaves); fewer hold answers up less, more answer long prompts sooner",
    "kv_events": "ZeroMQ address at which changes of the prefix cache are published, as vLLM does: tcp://*:5557",
    "kv_events_replay": "ZeroMQ address at which missed changes are asked for: tcp://*:5558",
    "register": "gateways to join as a replica, with commas between several: http://gateway:4000",
    "register_as": "the gateways' provider that takes replicas",
    "replica": "name of this replica, the same after a restart (default: host and port)",
    "advertise": "where gateways reach this engine (default: http://host:port/v1)",
    "drain_s": "seconds that open streams may take after SIGTERM",
    "request_timeout_s": "seconds after which an unfinished request is ended (default: never; a header may say less)",
    "watchdog_s": "seconds without progress after which the core is restarted",
    "die_with_parent": "end when the process that started this one ends",
}

SECRETS = ("key", "register_token")
SIZES = ("kv_cache_bytes", "kv_host_bytes", "image_bytes")
SWITCHES = ("prefix_caching", "die_with_parent", "batch_invariant")

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """`2GiB`, `512 MiB`, `1e9` or a bare number of bytes. Raises BadSetting."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise BadSetting(f"not a size: {text!r} (write it as 512MiB or 2GiB)")
    return int(float(found[1]) * UNITS[found[2] or ""])


def adapter_folders(text: str | None) -> dict[str, Path]:
    """`name=folder,name=folder` by name. Raises BadSetting."""
    found: dict[str, Path] = {}
    for part in (text or "").split(",") if text else []:
        name, equals, folder = part.strip().partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name) or not folder or name in found:
            raise BadSetting(f"adapters: {part.strip()!r} is not name=folder with a name of its own")
        found[name] = Path(folder)
    return found


def default_data_dir(env: Mapping[str, str] | None = None) -> Path:
    """`FAREBOX_DATA`, else the user's data folder as the XDG Base Directory Specification has it."""
    env = os.environ if env is None else env
    if given := env.get("FAREBOX_DATA"):
        return Path(given)
    home = env.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "farebox"


def hub_endpoint(env: Mapping[str, str] | None = None) -> str:
    """Where Hugging Face repositories are fetched from; `HF_ENDPOINT` names a mirror, as in huggingface_hub."""
    env = os.environ if env is None else env
    return env.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_token(env: Mapping[str, str] | None = None) -> str | None:
    """Token for gated repositories, under huggingface_hub's own name."""
    env = os.environ if env is None else env
    return env.get("HF_TOKEN") or None


def register_token(env: Mapping[str, str] | None = None) -> str | None:
    """What a gateway wants to see of replicas."""
    env = os.environ if env is None else env
    return env.get(REGISTER_TOKEN) or None


def core_environment() -> dict[str, str]:
    """Environment of the core process.

    Idle OpenMP threads must sleep: by default they spin for the next loop, and where other processes want the cores,
    each of a step's hundreds of loops then waits for a whole time slice. SmolLM2 on two cores at a load of six, 16
    streams: 7.7 tokens/s spinning, 97 to 146 sleeping (2026-11)."""
    # Ranks meet on this machine, and nobody else has business with them.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | loopback | os.environ


def child_environment(**changes: str) -> dict[str, str]:
    """Our environment with some variables replaced, for a child process."""
    return {**os.environ, **changes}


def load_settings(argv: list[str], env: Mapping[str, str] | None = None) -> Settings:
    """Defaults, then the environment, then flags. Raises BadSetting naming the setting; SystemExit on --help."""
    env = os.environ if env is None else env
    parser = argparse.ArgumentParser(prog="local_backend", description="Serve one model in OpenAI's dialect.")
    parser.add_argument("model", nargs="?", help="directory, GGUF file or catalogue name")
    for name in Settings.__struct_fields__[1:]:
        flag = "--" + name.replace("_", "-")
        if name in SECRETS:
            continue  # every user of a machine can read the arguments of its processes
        if name in SWITCHES:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=HELP.get(name))
        else:
            parser.add_argument(flag, default=None, help=HELP.get(name), metavar="V")
    flags = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    values: dict[str, object] = {"data": str(default_data_dir(env))}
    for name in Settings.__struct_fields__:
        if (given := env.get(ENV_PREFIX + name.upper())) is not None:
            values[name] = given
    values |= flags
    if "model" not in values:
        raise BadSetting("no model given: name a directory, a GGUF file or a catalogue name")
    for name in SIZES:
        if isinstance(size := values.get(name), str):
            values[name] = parse_bytes(size)
    for name in SWITCHES:
        if isinstance(text := values.get(name), str):
            values[name] = {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    try:
        settings = msgspec.convert(values, Settings, strict=False)
        adapter_folders(settings.adapters)
        if (settings.speculation == "draft") != (settings.draft_model is not None):
            raise BadSetting("speculation draft and draft_model: one needs the other")
        return settings
    except msgspec.ValidationError as error:
        raise BadSetting(str(error)) from None
