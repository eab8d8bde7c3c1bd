"""One connection per client: sockets and streams, and their limits."""
