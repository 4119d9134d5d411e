"""Mirrors `pipeline.terminal`."""
