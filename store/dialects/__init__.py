"""The SQL of SQLite and of PostgreSQL."""
