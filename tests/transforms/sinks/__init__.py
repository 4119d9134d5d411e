"""Mirrors `transforms.sinks`."""
