"""Sinks: files, BigQuery and Pub/Sub behind the protocol of `base`."""
