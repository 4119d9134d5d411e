"""What bqemulator 1.4.0 lacks of the BigQuery that Beam and google-cloud-bigquery use.

Runs in the servers' environment only. One file per part of the API; ``install.py`` puts them
into the emulator:

- ``extensions.py``: DuckDB's extensions from their wheels, nothing is downloaded
- ``rows.py``: JSON rows checked and converted against a table's schema, strictly
- ``load_jobs.py``: atomic load jobs, uploads included, with the job's own ``outputRows``
- ``query_jobs.py``: destination tables; errors of ``jobs.query`` as HTTP errors
- ``extract_jobs.py``: extract jobs whose files Cloud Storage lists
- ``job_ids.py``: a job id works once, then 409
- ``resources.py``: filtered dataset lists; schemas with the API's type names; added columns
- ``streaming_inserts.py``: ``insertAll`` that rejects what the service rejects
- ``write_api.py``: the Storage Write API: row errors, nested columns, streams that outlive a server

What it does not prove. The error contract (statuses, reasons, all-or-nothing rules) was
written from the API's documentation and never compared with the service; message texts are
only similar. Not emulated: permissions, quotas, prices (``totalBytesProcessed`` is 0),
locations, jobs that take time (each is DONE when it is created), the streaming buffer's
limits on DML, time travel, ``maxBadRecords``, load ``schemaUpdateOptions``, MERGE errors on several
matches, and keeping a table's partitioning when a query's WRITE_TRUNCATE replaces it.
"""
