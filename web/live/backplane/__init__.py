"""Commits of other processes, through Redis or the rows."""
