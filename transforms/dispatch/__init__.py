"""What drives a backend: one event loop per process, pace, retries, what stops a run."""
