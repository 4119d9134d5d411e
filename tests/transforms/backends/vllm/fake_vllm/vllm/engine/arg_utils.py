"""Only its text matters: --performance-mode."""
