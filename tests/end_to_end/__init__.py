"""Whole runs, from a command line to the rows in the sinks."""
