"""Run by Alembic. The connection, and the transaction it is in, belong to billing.migrate.

To add tables: declare them on `billing.db.metadata` in billing/schema.py or gateway/schema.py, and write
versions/YYYY-MM-DD_what_it_does.py whose `down_revision` is the newest `revision` there is. A test compares the
migrated database with the metadata, so neither can be forgotten. Afterwards `python -m billing.fresh` writes sqlite.sql
anew, for first starts; one that is older than the newest migration is right all the same, and slower.
"""

from importlib.util import find_spec

from alembic import context

import billing.schema  # noqa: F401 - declares its tables
from billing.db import metadata

if find_spec("gateway.schema") is not None:
    import gateway.schema  # noqa: F401 - declares its tables

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite can not alter a column: Alembic copies the table.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
