"""Every way in which rows get into BigQuery."""
