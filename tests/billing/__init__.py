"""Money: real files, real SQLite, real PostgreSQL."""
