"""The bytes that clients receive: RFC 6455 frames and JSON messages."""
