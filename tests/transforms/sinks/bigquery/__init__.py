"""Mirrors `transforms.sinks.bigquery`."""
