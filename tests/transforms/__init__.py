"""Mirrors `transforms`."""
