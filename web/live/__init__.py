"""The live part: the hub, which sends clients the rows that they watch, and each change. It knows no Flask."""
