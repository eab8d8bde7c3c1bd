"""Databases by URL, and one connection per thread."""
