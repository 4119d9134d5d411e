"""Mirrors `pipeline.local`."""
