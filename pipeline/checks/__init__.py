"""The checks before launch."""
