"""A folder for ``PYTHONPATH`` that points a sub-process's BigQuery clients at the emulator."""
