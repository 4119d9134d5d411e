"""BigQuery as a sink: load jobs, Storage Write API appends, streaming inserts."""
