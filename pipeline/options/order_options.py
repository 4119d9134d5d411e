"""The flags of the order in which requests are sent."""

from pipeline.options.option import Option

ORDER_OPTIONS: tuple[Option, ...] = (
    Option(
        "order_by_prefix",
        "Pace",
        "Send requests that begin alike one behind the other, for servers with a prefix cache: "
        "within each workload batch, or from all of the data set by a shuffle. Not by default.",
        choices=("batch", "data_set"),
    ),
    Option(
        "prefix_chars",
        "Pace",
        "With --order_by_prefix=data_set: first characters of a prompt that have to be alike; "
        "1000 by default.",
        metavar="N",
    ),
)
