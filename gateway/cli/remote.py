"""The caller's side of `farebox --url`: sends a command to a gateway's admin API and shows what comes back."""

from __future__ import annotations

import base64
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.cli.common import AWAY, NOT_WELL, WRONG_USAGE, Elsewhere, Failure, Problem, bar, terminal_width
from gateway.cli.site import READ, WRITTEN

if TYPE_CHECKING:
    from gateway.cli.hosted import Call

PATH: Final = "/admin/v1/commands"
CONNECT_S: Final = 10.0
SILENT_S: Final = 60.0
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def run(argv: Sequence[str], call: Call, url: str, token: str | None) -> int:
    """Returns: the exit code. Raises: Problem, Elsewhere."""
    return send(argv, call, url, token, sys.stdout.write)


def send(argv: Sequence[str], call: Call, url: str, token: str | None, write: Any) -> int:
    """write: takes what the command prints. Returns: the exit code. Raises: Problem, Elsewhere."""
    import httpx

    assert call.common is not None
    if call.common.config or call.common.data:
        fix = "leave --config and --data out, or --url (and FAREBOX_URL) to work on this machine"
        raise Problem("--config and --data are of this machine, the command is for another", fix=fix, code=WRONG_USAGE)
    body = {
        "argv": list(argv),
        "files": {str(path): base64.b64encode(_read(path)).decode() for path in call.files(READ)},
        "width": terminal_width() or max(20, shutil.get_terminal_size().columns),
        "color": sys.stdout.isatty(),
    }
    wanted = [str(path) for path in call.files(WRITTEN)]
    timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
    try:
        with (
            httpx.Client(timeout=timeout) as client,
            client.stream("POST", _address(url), json=body, headers=_headers(url, token)) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _refused(response.status_code, response.content, url)
            return _listen(response.iter_lines(), call, wanted, write)
    except httpx.HTTPError as error:
        problem = f"{url} cannot be reached: {str(error) or type(error).__name__}"
        raise Problem(problem, fix="check --url (or FAREBOX_URL) and that the gateway runs", code=AWAY) from error


def _address(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise Problem(f"{url!r} is no address", fix="as https://farebox.example.com", code=WRONG_USAGE)
    return url.rstrip("/") + PATH


def _headers(url: str, token: str | None) -> dict[str, str]:
    if not token:
        fix = "make one there (`farebox tokens create`, or the dashboard), and export FAREBOX_TOKEN=..."
        raise Problem("a remote installation wants an API token", fix=fix, code=WRONG_USAGE)
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        print("farebox: the token goes over the network in the clear; use https", file=sys.stderr)
    return {"authorization": f"Bearer {token}"}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", fix="a file that can be read", code=WRONG_USAGE) from error


def _refused(status: int, content: bytes, url: str) -> Exception:
    try:
        said = msgspec.json.decode(content)
        detail, todo, kind = said["detail"], said["todo"], said["type"]
    except (msgspec.DecodeError, KeyError, TypeError):
        problem = f"{url} answered {status}, and not as a Farebox does"
        return Problem(problem, fix="give the address of the admin API, without a path", code=AWAY)
    if kind.endswith(":wrong-usage"):
        return Elsewhere(Failure("Problem", detail, todo, WRONG_USAGE))
    return Elsewhere(Failure(kind.rpartition(":")[2], detail, todo, AWAY if status >= 500 else NOT_WELL))


def _listen(lines: Any, call: Call, wanted: list[str], write: Any) -> int:
    assert call.common is not None
    with bar(call.common) as show:
        for text in lines:
            if not text:
                continue
            match msgspec.json.decode(text):
                case {"out": said}:
                    write(said)
                case {"progress": {"what": what, "done": done, "total": total}}:
                    show(what, done, total)
                case {"file": name, "first": first, "data": data}:
                    _keep(name, base64.b64decode(data), first, wanted)
                case {"failed": failed}:
                    raise Elsewhere(msgspec.convert(failed, Failure))
                case {"exit": int(code)}:
                    return code
    raise Problem("the gateway went away in the middle of the command", fix="look whether it was done", code=AWAY)


def _keep(name: str, data: bytes, first: bool, wanted: list[str]) -> None:
    """Write to what the command line named, and to nothing else, whatever the other side says."""
    folder, _, inside = name.rpartition("/")
    if name not in wanted and (folder not in wanted or inside in ("", ".", "..")):
        raise Problem(f"the gateway sent a file nobody asked for: {name}", code=NOT_WELL)
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if first else "ab") as file:
            file.write(data)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", fix="a place that can be written to") from error
