"""The messages that clients and the hub exchange, and the WebSocket frames that carry them."""
