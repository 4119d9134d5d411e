"""Mirrors `transforms.sources`."""
