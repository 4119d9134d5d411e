"""Mirrors `transforms.inference`."""
