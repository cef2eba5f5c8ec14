"""A bill of materials of what Farebox stands on, and a check of its licences: `python deploy/sbom.py > sbom.json`.

Reads what is installed in this environment, following the requirements in pyproject.toml. Standard library and
`packaging` (which every installation has) only: a tool that vouches for packages should bring few of its own.
Source: CycloneDX 1.6 JSON reference, read 2026-11.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("local", "vertex", "azure", "bedrock")
# MPL-2.0 (certifi's list of authorities, tqdm) asks for changes to its own files alone; PSF-2.0 is Python's own.
ACCEPTED = re.compile(
    r"(?:MIT|BSD|0BSD|Apache|ISC|PSF|MPL|Mozilla|Python Software|Zlib|BSL-1\.0|CC0|Unlicense|HPND)", re.IGNORECASE
)
REFUSED = re.compile(r"\b(?:A?GPL|LGPL|SSPL|BUSL|Commons Clause|Proprietary)", re.IGNORECASE)


def closure() -> tuple[dict[str, metadata.Distribution], list[str]]:
    """Every distribution that a full installation brings, by normal name; and those that are not installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"].get(extra, [])
    found: dict[str, metadata.Distribution] = {}
    absent: list[str] = []
    queue = [(Requirement(line), ("",)) for line in wanted]
    while queue:
        requirement, extras = queue.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": each}) for each in extras):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or name in absent:
            continue
        try:
            found[name] = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        queue += [(Requirement(line), ("", *requirement.extras)) for line in found[name].requires or []]
    return found, sorted(absent)


def licence_of(distribution: metadata.Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the free field, else of the licence's file."""
    said = distribution.metadata
    if expression := said.get("License-Expression"):
        return str(expression)
    classified = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or [] if line.startswith("License")]
    if classified:
        return " OR ".join(classified)
    return (said.get("License") or "").strip().partition("\n")[0]


def bill(found: dict[str, metadata.Distribution]) -> dict[str, Any]:
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{each.version}",
            "name": name,
            "version": each.version,
            "purl": f"pkg:pypi/{name}@{each.version}",
            "licenses": [{"license": {"name": licence_of(each) or "unknown"}}],
        }
        for name, each in sorted(found.items())
    ]
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    subject = {"type": "application", "name": own["name"], "version": own["version"], "bom-ref": "farebox"}
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": subject},
            "components": components}  # fmt: skip


def doubtful(found: dict[str, metadata.Distribution]) -> list[str]:
    """Packages under a licence that is none of the accepted ones."""
    return [
        f"{name} {each.version}: {licence_of(each) or 'says nothing'}"
        for name, each in sorted(found.items())
        if REFUSED.search(licence_of(each)) or not ACCEPTED.search(licence_of(each))
    ]


def audit(found: dict[str, metadata.Distribution]) -> int:
    """Known advisories, by pip-audit in a throw-away environment. Returns: its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pip-audit"], check=True)
        pins = Path(folder) / "pins.txt"
        lines = [f"{name}=={each.version.partition('+')[0]}" for name, each in sorted(found.items())]
        pins.write_text("\n".join(lines), encoding="utf-8")
        command = [python, "-m", "pip_audit", "--no-deps", "--disable-pip", "--strict", "-r", str(pins)]
        return subprocess.run(command, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/sbom.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--audit", action="store_true", help="also ask for known advisories (needs the network)")
    asked = parser.parse_args()
    found, absent = closure()
    sys.stdout.write(json.dumps(bill(found), indent=1) + "\n")
    if absent:
        sys.stderr.write(f"not installed here, so not listed: {', '.join(absent)}\n")
    bad = doubtful(found)
    for line in bad:
        sys.stderr.write(f"licence not accepted: {line}\n")
    return 1 if bad else audit(found) if asked.audit else 0


if __name__ == "__main__":
    sys.exit(main())
