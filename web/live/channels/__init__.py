"""Channels: one per row key that clients watch, with its subscribers and its recent deltas."""
