"""The live part: the hub sends clients the rows that they watch, and each change. It knows no Flask."""
