"""Files under deploy/ say what the programs they are for would take, as far as those are at hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.admin.static import DOCUMENT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def compose(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", [ROOT / "docker-compose.yml", DEPLOY / "compose.ha.yml"], ids=lambda path: path.name)
def test_compose_files_hang_together(path: Path) -> None:
    said = compose(path)
    services = said["services"]
    for name, service in services.items():
        for needed in service.get("depends_on", {}):
            assert needed in services, f"{name} waits for {needed}"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (path.parent / source).is_file(), f"{name} mounts {source}"
            else:
                assert source in said["volumes"], f"{name} mounts {source}"
        assert service.get("restart") == "unless-stopped"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens to the world"
        if "farebox" in service["image"]:
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"]
            dockerfile = path.parent / service["build"]["context"] / service["build"]["dockerfile"]
            assert dockerfile.is_file()
    # What has no default must be said by whoever starts it, with how to make it.
    asked = set(re.findall(r"\$\{(\w+):\?", path.read_text()))
    head = path.read_text().partition("\nname:")[0]
    assert all(f"{name}=" in head for name in asked), asked


def test_the_pair_is_two_of_the_same() -> None:
    services = compose(DEPLOY / "compose.ha.yml")["services"]
    one, two = services["gateway-1"], services["gateway-2"]
    differing = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    assert differing == {"volumes", "depends_on"}
    assert {"balancer", "worker-1", "worker-2", "postgres", "valkey"} <= services.keys()
    servers = re.findall(r"^\s+server (\S+) (\S+):4000$", (DEPLOY / "haproxy.cfg").read_text(), re.M)
    assert {name for name, host in servers if name == host} == {"gateway-1", "gateway-2"}


def test_haproxy_takes_its_file() -> None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("NOT RUN: haproxy is not on PATH")
    done = subprocess.run([program, "-c", "-f", DEPLOY / "haproxy.cfg"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "[WARNING]" in line]
    # Outside of the compose network nobody is called gateway-1.
    assert [line for line in warnings if "could not resolve address" not in line] == []


def test_terraform_names_endpoints_that_are_there() -> None:
    """There is no Terraform here; its words are compared with the admin API's own document."""
    paths = {
        re.sub(r"{\w+}", "{}", path): set(said) for path, said in json.loads(DOCUMENT.read_bytes())["paths"].items()
    }
    text = (DEPLOY / "terraform" / "main.tf").read_text()
    resources = re.findall(r'^resource "restapi_object" "(\w+)" {\n(.*?)^}', text, re.M | re.S)
    assert [name for name, _ in resources] == ["project", "key", "budget"]
    for name, body in resources:
        fields = dict(re.findall(r'^\s+(\w+)\s+= "([^"]*)"$', body, re.M))
        for verb, default in (("create", "POST"), ("read", "GET"), ("update", "PUT"), ("destroy", "DELETE")):
            if name == "project" and verb in ("update", "destroy"):
                continue  # made anew, never removed
            path = fields.get(f"{verb}_path", fields["path"]).replace("project/{id}/month", "{id}/{id}/{id}")
            method = fields.get(f"{verb}_method", default).lower()
            assert method in paths[re.sub(r"{\w+}", "{}", path)], (name, verb, path)
    variables = (DEPLOY / "terraform" / "variables.tf").read_text()
    assert set(re.findall(r"var\.(\w+)", text)) == set(re.findall(r'^variable "(\w+)"', variables, re.M))
    for line in (text + variables).splitlines():
        assert line == line.rstrip()
        assert "\t" not in line
    assert text.count("{") == text.count("}")
