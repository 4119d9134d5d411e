"""Mirrors `transforms.records`."""
