"""Part of Keyfold."""
