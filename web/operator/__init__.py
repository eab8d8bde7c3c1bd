"""The operator's page, its actions, probes and metrics."""
