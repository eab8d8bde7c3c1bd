"""Live delivery without Flask: the hub, its reactor, and the sources of its rows."""
