"""Connections: one per client, as a WebSocket or an event stream, with its bounds and its rights."""
