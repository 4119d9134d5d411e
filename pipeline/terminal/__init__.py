"""What a run prints: progress, the closing table, the preview."""
