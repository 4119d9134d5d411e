"""Counts, reconciliation and metrics of a run."""
