"""Adds the parts of BigQuery that Beam and its client use and bqemulator 1.4.0 lacks.

Runs in the servers' environment only. One file per part of the API; ``install.py`` puts them
into the emulator:

- ``extensions.py``: DuckDB's extensions from their wheels, without a download
- ``rows.py``: JSON rows checked and converted against a table's schema, strictly
- ``load_jobs.py``: atomic load jobs, uploads included, with the job's own ``outputRows``
- ``query_jobs.py``: destination tables; errors of ``jobs.query`` as HTTP errors
- ``extract_jobs.py``: extract jobs whose files Cloud Storage lists
- ``job_ids.py``: a job id works once, then answers 409
- ``resources.py``: filtered dataset lists; schemas with the API's type names; added columns
- ``streaming_inserts.py``: ``insertAll`` that rejects the same rows as the service
- ``write_api.py``: the Storage Write API: row errors, nested columns, streams that outlive a server

Limits: the error contract (statuses, reasons, all-or-nothing rules) was
written from the API's documentation and never compared with the service; message texts are
only similar. Not emulated: permissions, quotas, prices (``totalBytesProcessed`` is 0),
locations, jobs that take time (each is DONE when it is created), the streaming buffer's
limits on DML, time travel, ``maxBadRecords``, load ``schemaUpdateOptions``, MERGE errors on several
matches, and keeping a table's partitioning when a query's WRITE_TRUNCATE replaces it.
"""
