"""Counts of what was read and written, the reconciliation, and metrics."""
