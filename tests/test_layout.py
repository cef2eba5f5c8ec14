"""The house plan stays true: who imports whom, whose packages these are, what is pinned, and what never enters."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("billing", "gateway", "local_backend", "providers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES_MAX = 600
# One long table or state machine may stay whole; name it here with its reason.
LONG_ON_PURPOSE: dict[str, str] = {}
# Written so that this file does not hold them itself.
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org"))]


def tracked() -> list[Path]:
    """What git has, or would take: what is ignored is nobody's business."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def python_files() -> Iterator[tuple[str, Path]]:
    for path in tracked():
        if path.suffix == ".py":
            yield str(path.relative_to(ROOT)), path


def imported_at_top(path: Path) -> set[str]:
    """Top-level names of modules that importing this file imports."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add(child.module)
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_import_directions() -> None:
    """The contracts stand in pyproject.toml, so that `lint-imports` tells the same as this."""
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run([sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def test_our_packages_share_one_root_and_nobody_else_claims_their_names() -> None:
    roots = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None, f"{name} has no __init__.py"
        roots[name] = Path(spec.origin).parents[1]
    assert set(roots.values()) == {ROOT}
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert {canonicalize_name(owner) for owner in owners.get(name, ())} <= {"farebox"}


def test_only_the_configs_read_the_environment() -> None:
    readers = {
        name
        for name, path in python_files()
        if name.startswith(PACKAGES)
        and any(
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "environb", "getenv")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert readers <= {"gateway/config.py", "local_backend/config.py"}


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("torch", "local_backend/"),
        ("google", ""),
        ("vertexai", ""),
        ("boto3", ""),
        ("botocore", ""),
        ("transformers", ""),
        ("genai_prices", "billing/seed"),
    ],
)
def test_heavy_modules_are_imported_where_they_belong_or_inside_a_function(module: str, where: str) -> None:
    for name, path in python_files():
        if name.startswith(PACKAGES) and not (where and name.startswith(where)):
            tops = {imported.partition(".")[0] for imported in imported_at_top(path)}
            assert module not in tops, f"{name} imports {module}"


def test_the_gateway_starts_without_anything_heavy() -> None:
    heavy = "{'torch', 'google', 'boto3', 'botocore', 'vertexai', 'transformers', 'pydantic', 'openai', 'anthropic', "
    heavy += "'sqlalchemy.orm', 'httpx', 'litestar', 'alembic'}"
    code = f"import sys, gateway.app, gateway.chores; print(sorted({heavy} & sys.modules.keys()))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"


def test_files_are_short_enough_to_be_read() -> None:
    long = {
        name: lines
        for name, path in python_files()
        if (lines := len(path.read_text().splitlines())) > LINES_MAX and name not in LONG_ON_PURPOSE
    }
    assert not long


def test_no_registry_host_in_any_file() -> None:
    for path in tracked():
        if path.name == "test_layout.py":
            continue
        text = path.read_bytes()
        for host in HOSTS:
            assert host.encode() not in text, f"{path.relative_to(ROOT)} names {host}"


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_constraints_are_exact_and_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "@" not in text
    for requirements in pins().values():
        for requirement in requirements:
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), str(requirement)
    # A local build of torch has a version of its own, and has to win over the index.
    assert "torch" not in pins()


def test_every_requirement_is_pinned_within_its_range() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["local"], *extras["test"], *extras["dev"]]
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == "torch":
            continue
        assert name in pins(), f"{name} has no pin; make constraints.txt anew"
        for pin in pins()[name]:
            (version,) = (spec.version for spec in pin.specifier)
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} is outside of {requirement}"


def test_what_is_imported_is_required() -> None:
    """Somebody else's dependency is not ours: it may go with their next release."""
    owners = importlib.metadata.packages_distributions()
    extras = PROJECT["optional-dependencies"]
    always = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    # The price list is made from it by hand, before a release.
    allowed = {
        "local_backend": always | {canonicalize_name(Requirement(text).name) for text in extras["local"]},
        "billing/seed.py": always | {"genai-prices"},
        # Loaded only where a collector is set.
        "gateway/observe/traces.py": always | {canonicalize_name(Requirement(text).name) for text in extras["otel"]},
    }
    # Extras of what we require.
    always |= {"hiredis", "greenlet"}
    for name, path in python_files():
        if not name.startswith(PACKAGES):
            continue
        permitted = next((names for place, names in allowed.items() if name.startswith(place)), set()) | always
        for imported in {module.partition(".")[0] for module in imported_at_top(path)}:
            if imported in sys.stdlib_module_names or imported in PACKAGES:
                continue
            if imported == "triton" and name.startswith("local_backend/kernels/triton_"):
                continue  # torch's wheels for CUDA bring it; only where they run are these files imported
            distributions = {canonicalize_name(owner) for owner in owners.get(imported, ())}
            assert distributions & permitted, f"{name} imports {imported}, which no requirement of ours brings"


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("farebox") == PROJECT["version"] if _installed() else True


def _installed() -> bool:
    try:
        importlib.metadata.version("farebox")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[local]' && .venv/bin/farebox up"
        in readme
    )
    ci = (ROOT / ".ci" / "run").read_text()
    assert "-c constraints.txt -e '.[local,test,dev]'" in ci
    assert "farebox up" in ci


def test_each_package_has_its_page() -> None:
    for name in PACKAGES:
        page = ROOT / name / "README.md"
        assert page.is_file(), f"{name}/README.md is missing"
        assert page.read_text().startswith(f"# {name}")
