"""Mirrors `transforms.clients`."""
