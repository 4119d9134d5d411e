"""Mirrors `transforms.results`."""
