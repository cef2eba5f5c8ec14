"""What all migrations make of an SQLite database that has nothing, in one go: `migrations/sqlite.sql`.

A first start would run each of them, and load Alembic for it: a quarter of its CPU, and 10 MB that stay. The file is
what `python -m billing.fresh` reads off a database that was migrated; migrations newer than the file run after it.
PostgreSQL has no such file: what is written there depends on the server.
"""

import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import Connection

from billing import migrate

NAME = "sqlite.sql"


def takes(connection: Connection) -> bool:
    """Whether nothing at all is there."""
    return connection.dialect.name == "sqlite" and not inspect(connection).get_table_names()


def make(connection: Connection) -> None:
    """In the caller's transaction."""
    for statement in statements((migrate.migrations() / NAME).read_text(encoding="utf-8")):
        connection.exec_driver_sql(statement)


def statements(script: str) -> Iterator[str]:
    """One by one: what sqlite3 has for whole scripts ends the transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def read_off(database: Path) -> str:
    """The statements that make one like it."""
    connection = sqlite3.connect(database)
    try:
        # The first and the last begin and end a transaction.
        return "".join(f"{statement}\n" for statement in list(connection.iterdump())[1:-1])
    finally:
        connection.close()


async def written() -> str:
    """The file as the migrations of now would have it."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "migrated.db"
        await migrate.by_migrations(f"sqlite:///{database}")
        return await asyncio.to_thread(read_off, database)


def main() -> None:
    path = migrate.migrations() / NAME
    path.write_text(asyncio.run(written()), encoding="utf-8")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
