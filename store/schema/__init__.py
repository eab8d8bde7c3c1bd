"""Tables, their models and their migrations."""
