"""A run's output on the terminal: progress, the closing table, the preview."""
