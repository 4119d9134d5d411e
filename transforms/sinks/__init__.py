"""Where rows go: staged by `staging`, then finished as files or loaded into BigQuery."""
