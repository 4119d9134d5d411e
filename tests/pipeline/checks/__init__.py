"""Mirrors `pipeline.checks`."""
