"""An actor type for Pykka whose actors share a few threads."""
