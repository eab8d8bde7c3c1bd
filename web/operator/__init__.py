"""The operator's page, probes and metrics."""
