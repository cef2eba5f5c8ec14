"""Where a request's time goes: `python -m tests.bench.flame --svg before.svg [--connections 64] [--seconds 8]`.

py-spy (`pip install py-spy`) samples the gateway's event loop under load; the picture is one SVG of the frames that
take 0.4 % or more, callers above, so that two of them can be laid side by side."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tests.bench.hotpath import drained, load, stack

WIDTH, ROW = 1200, 15
LEAST_SHARE = 0.004
_HUES = {"gateway": 18, "providers": 95, "billing": 210, "sqlalchemy": 280}
_LOOP = "Runner.run"  # What lies above it is the command, the same in every stack.
_FRAME = re.compile(r"(?P<name>[^(]+) \((?P<file>[^:)]*)[^)]*\)")


@dataclass
class Frame:
    samples: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 1 + max((frame.depth for frame in self.callees.values()), default=0)


def fold(raw: str) -> Frame:
    """raw: py-spy's, one line a stack: frames with semicolons between, a blank, how often."""
    root = Frame()
    for line in raw.splitlines():
        stack_of, _, count = line.rpartition(" ")
        _, found, frames = stack_of.partition(f";{_LOOP}")
        if not found:
            continue  # Another thread's, which py-spy takes for busy while it waits.
        at = root
        at.samples += int(count)
        for name in map(_short, frames.split(";")[1:]):
            at = at.callees.setdefault(name, Frame())
            at.samples += int(count)
    return root


def _short(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    path = Path(found["file"])
    ours = next((at for at, part in enumerate(path.parts) if part in _HUES), None)
    return f"{found['name']} {'/'.join(path.parts[ours:]) if ours is not None else path.name}"


def drawn(root: Frame, title: str) -> str:
    height = (root.depth + 3) * ROW
    boxes = "".join(_boxes(root, 0.0, 1, root.samples))
    fonts = 'font-family="monospace" font-size="10"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {fonts}>'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="4" y="12">{escape(title)}</text>{boxes}</svg>\n'
    )


def _boxes(frame: Frame, left: float, row: int, whole: int) -> Iterator[str]:
    for name, callee in frame.callees.items():
        share = callee.samples / whole
        if share >= LEAST_SHARE:
            width, top = share * WIDTH, (row + 1) * ROW
            room = int(width / 6.1)
            said = name if len(name) <= room else name[: max(0, room - 1)] + "…" if room > 3 else ""
            file = name.rpartition(" ")[2].partition("/")[0]
            colour = f"hsl({_HUES[file]} 80% 75%)" if file in _HUES else "hsl(0 0% 85%)"
            yield f"<g><title>{escape(name)} {share:.1%}</title>"
            yield f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}" fill="{colour}"/>'
            yield f'<text x="{left + 2:.1f}" y="{top + 11}">{escape(said)}</text></g>'
            yield from _boxes(callee, left, row + 1, whole)
        left += callee.samples / whole * WIDTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svg", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    spy = shutil.which("py-spy")
    if spy is None:
        raise SystemExit("no py-spy here: pip install py-spy")
    with stack(postgres=False, pin=False) as (gateway, _), tempfile.TemporaryDirectory() as folder:
        load(gateway.port, "--connections", args.connections, "--seconds", 1.5, pin=False)
        drained(gateway)
        raw = Path(folder) / "stacks"
        command = [spy, "record", "--pid", str(gateway.process.pid), "--rate", "250", "--format", "raw"]
        command += ["--duration", str(int(args.seconds)), "--output", str(raw)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as spying:
            found = load(gateway.port, "--connections", args.connections, "--seconds", args.seconds + 1, pin=False)
            spying.wait(60)
        root = fold(raw.read_text())
    title = f"{args.connections} in flight, {root.samples} samples of {found['answers']} requests, rows shipped beside"
    args.svg.write_text(drawn(root, title), encoding="utf-8")
    print(f"{args.svg}: {args.svg.stat().st_size // 1024} KB, {title}")


if __name__ == "__main__":
    main()
