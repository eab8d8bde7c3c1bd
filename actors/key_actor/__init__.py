"""The actor that owns one key: how it folds, commits and recovers."""
