"""Mirrors `transforms.accounting`."""
