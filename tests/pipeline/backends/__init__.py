"""Mirrors `pipeline.backends`."""
