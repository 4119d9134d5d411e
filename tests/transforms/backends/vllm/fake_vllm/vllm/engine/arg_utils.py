"""Only its text is looked at: --performance-mode."""
