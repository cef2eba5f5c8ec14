"""Fixtures for every test: migrated databases of both kinds, and an empty Valkey. The servers are in services.py."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from billing.migrate import upgrade
from tests import services

DATABASES = ("sqlite", "postgresql")

# How long an example takes is the machine's affair: a busy one must not fail a property.
settings.register_profile(
    "any machine",
    settings.default,
    deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("any machine")


def pytest_report_header() -> list[str]:
    return services.versions()


@pytest.fixture(scope="session")
def databases() -> Iterator[services.Databases]:
    """PostgreSQL, with a template made by the real migrations."""
    with services.postgres() as databases:
        yield databases


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file made by the real migrations."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    services.in_thread(upgrade(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="module", params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database, one for each module, on SQLite and then on PostgreSQL. As a SQLAlchemy URL."""
    with _clone(request) as url:
        yield url


@pytest.fixture(params=DATABASES)
def fresh_database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `database_url`, for one test alone: for those that count everything there is."""
    with _clone(request) as url:
        yield url


@contextlib.contextmanager
def _clone(request: pytest.FixtureRequest) -> Iterator[str]:
    # Asked for by name and only when needed: SQLite's half runs where no PostgreSQL can.
    if request.param == "postgresql":
        with request.getfixturevalue("databases").clone() as url:
            yield url
    else:
        folder = request.getfixturevalue("tmp_path_factory").mktemp("sqlite")
        copy = shutil.copy(request.getfixturevalue("sqlite_template"), folder / "farebox.db")
        yield f"sqlite+aiosqlite:///{copy}"


@pytest.fixture(scope="session")
def _valkey() -> Iterator[str]:
    with services.valkey() as url:
        yield url


@pytest.fixture
def redis_url(_valkey: str) -> str:
    """An empty Valkey."""
    services.flush(_valkey)
    return _valkey
