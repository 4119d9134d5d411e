"""Where records come from: one file per source, `ReadRecords` around any of them."""
