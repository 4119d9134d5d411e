"""Mirrors `pipeline.options`."""
