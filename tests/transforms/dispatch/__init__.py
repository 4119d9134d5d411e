"""Mirrors `transforms.dispatch`."""
