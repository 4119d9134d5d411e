"""Mirrors `pipeline`."""
