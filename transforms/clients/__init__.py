"""Clients of services: HTTP, Google authentication, Secret Manager, BigQuery."""
