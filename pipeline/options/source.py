"""The flags of sources; `pipeline.options.command_line` has the others, and makes the command line of both."""

from pipeline.options.option import Option

GROUP = "Source"

SOURCE_OPTIONS: tuple[Option, ...] = (
    Option("input_files", GROUP, "Files to read: a local or gs:// glob.", metavar="GLOB"),
    Option(
        "input_format",
        GROUP,
        "Format of the files, when their names do not tell. `objects` makes one record per file, "
        "with its uri and mime_type; the file goes with the prompt.",
        choices=("jsonl", "csv", "parquet", "avro", "txt", "objects"),
    ),
    Option("input_table", GROUP, "A BigQuery table to read.", metavar="PROJECT:DATASET.TABLE"),
    Option("input_fields", GROUP, "The table's columns to read; all by default.", metavar="A,B"),
    Option("input_filter", GROUP, "Which of the table's rows to read: SQL, as in WHERE."),
    Option("input_query", GROUP, "A BigQuery query (GoogleSQL) to read.", metavar="SQL"),
    Option(
        "input_subscription",
        GROUP,
        "A Pub/Sub subscription to read, until the job is stopped: one JSON object per message.",
        metavar="projects/P/subscriptions/S",
    ),
    Option(
        "pubsub_id_attribute",
        GROUP,
        "The attribute by which Dataflow drops copies of a message that come within ten minutes; "
        "without it a message that is published twice is two records.",
        metavar="NAME",
    ),
    Option(
        "input_dead_letters",
        GROUP,
        "Dead letters of earlier runs, to try again: a BigQuery table (with --input_filter) or "
        "files.",
        metavar="TABLE_OR_GLOB",
    ),
    Option("limit", GROUP, "Read only so many inputs.", metavar="N"),
)
