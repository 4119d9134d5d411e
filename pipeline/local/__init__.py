"""Runners that work on this machine."""
