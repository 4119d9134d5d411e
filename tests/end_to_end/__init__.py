"""Whole runs, from a command line to what the sinks hold."""
