"""The flags of pace and batching; `pipeline.options.command_line` makes the command line of all."""

from pipeline.options.option import Option

GROUP = "Pace"

PACE_OPTIONS: tuple[Option, ...] = (
    Option(
        "max_requests_per_minute",
        GROUP,
        "A quota of the whole job; each process takes its share. On Dataflow it needs "
        "--max_num_workers.",
        metavar="N",
    ),
    Option("max_tokens_per_minute", GROUP, "Likewise, of input and output tokens.", metavar="N"),
    Option(
        "max_concurrency",
        GROUP,
        "The most calls in flight at once, per process; the pace below it adapts itself.",
        "2048",
        metavar="N",
    ),
    Option("max_attempts", GROUP, "Calls per record that may fail.", "5", metavar="N"),
    Option("request_timeout_s", GROUP, "Seconds that one call may take.", "120", metavar="S"),
    Option(
        "record_deadline_s", GROUP, "A record's seconds, from its first call.", "3600", metavar="S"
    ),
    Option(
        "max_dead_letter_ratio",
        GROUP,
        "When more than this share of at least 1,000 records has failed at the model, the run "
        "stops: what is left is not_attempted. 1 for never.",
        "0.2",
        metavar="X",
    ),
    Option("max_batch_size", GROUP, "Requests in a workload batch.", "256", metavar="N"),
    Option(
        "max_batch_wait_s",
        GROUP,
        "Streaming: how many seconds a workload batch that is not full waits for more requests.",
        "1",
        metavar="S",
    ),
    Option(
        "batch_keys",
        GROUP,
        "Streaming: workload batches that are filled at a time. One key is one core's work; more "
        "keys take more requests per second to fill their batches in time.",
        "1",
        metavar="N",
    ),
)
