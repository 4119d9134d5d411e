"""A loopback Google Cloud for tests: BigQuery, Cloud Storage and credentials, no account.

``fixtures.py`` is what a test uses; ``google_cloud.py`` starts the servers; the
``*_server.py`` files and ``bigquery_shim`` run inside the servers' own environment, which
``environment.py`` creates on demand.
"""
