"""In which order requests are sent, by flags."""

import dataclasses

from pipeline.options.command_line import Values
from transforms.records.errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """How requests are brought together that begin alike.

    Attributes:
      in_batch: Whether within each workload batch.
      prefix_chars: Also from all of the data set: by so many first characters; None for not.
    """

    in_batch: bool = False
    prefix_chars: int | None = None


def order_of(values: Values, *, streaming: bool) -> Order:
    """The order that the flags ask for.

    Raises:
      ConfigurationError: --prefix_chars without what it is for, or all of an endless data set.
    """
    where, chars = values.text("order_by_prefix"), values.integer("prefix_chars")
    if chars is not None and where != "data_set":
        raise ConfigurationError(
            f"--prefix_chars is {chars}, but goes with --order_by_prefix=data_set only: remove it"
        )
    if where == "data_set" and streaming:
        raise ConfigurationError(
            "--order_by_prefix is 'data_set', but the input never ends: use batch"
        )
    return Order(where is not None, (chars or 1000) if where == "data_set" else None)
