"""Sources of records: one file per source, and `ReadRecords`, which reads any of them."""
