"""The command line: flask keyfold."""
