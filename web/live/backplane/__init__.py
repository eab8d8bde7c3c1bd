"""Commits of other processes: through Redis, or by a look at the rows."""
