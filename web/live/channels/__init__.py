"""One channel per key: its subscribers and its recent deltas."""
