"""Mirrors `transforms.requests`."""
