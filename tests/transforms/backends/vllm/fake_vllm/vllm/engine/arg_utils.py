"""Only the text of this file matters: --performance-mode."""
