"""The command line: every flag, its parsing, and ``--help``.

A blank value means that the flag is not set. A mistake is a `ConfigurationError` with the value and
the remedy.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.options.flag import Flag
from pipeline.options.messages import suggestion
from pipeline.options.model import MODEL_FLAGS
from pipeline.options.pace import PACE_FLAGS
from pipeline.options.request import REQUEST_FLAGS
from pipeline.options.run import RUN_FLAGS
from pipeline.options.sinks import SINK_FLAGS
from pipeline.options.source import source_flags
from pipeline.options.values import Values
from transforms.records.errors import ConfigurationError

FLAGS: tuple[Flag[Any], ...] = tuple(
    dict.fromkeys(
        [
            *source_flags(),
            *REQUEST_FLAGS,
            *MODEL_FLAGS,
            *PACE_FLAGS,
            *SINK_FLAGS,
            *RUN_FLAGS,
        ]
    )
)
"""Every flag, by group: our own, and those that other packages add."""

_FIELDS = {flag.field: str(flag) for flag in reversed(FLAGS)}
_FIELD = re.compile(r"`(\w+)`")


class InferenceOptions(PipelineOptions):
    """Our flags as Beam options, so that they travel with the pipeline."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        groups: dict[str, Any] = {}
        for flag in FLAGS:
            if flag.group not in groups:
                groups[flag.group] = parser.add_argument_group(flag.group)
            default = f" Default: {flag.default_text}." if flag.default_text else ""
            groups[flag.group].add_argument(
                str(flag),
                default=flag.default_text,
                metavar=flag.values,
                help=(flag.help + default).replace("%", "%%"),
            )


def parse_flags(argv: Sequence[str]) -> PipelineOptions:
    """Options from a command line; unlike Beam's own parsing, this refuses unknown flags.

    Raises:
      ConfigurationError: Unknown flags, flags without a value, or words that are not flags.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    InferenceOptions._add_argparse_args(parser)
    for kind in dict.fromkeys(_beam_options(PipelineOptions)):
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(argv))
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise ConfigurationError("\n".join(dict.fromkeys(_unknown(unknown, known))))
    return PipelineOptions(list(argv))


def _unknown(words: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """The faults of words that belong to no flag; skips the value after an unknown flag."""
    value_may_follow = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag.startswith("--"):
            yield f"unknown flag {flag}{suggestion(flag, known)}"
            value_may_follow = not equals
            continue
        if not value_may_follow:
            yield f"{word!r} is not a flag: write --name=value"
        value_may_follow = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        if found := re.fullmatch(r"argument (--\w+): expected one argument", message):
            raise ConfigurationError(f"{found[1]} has no value: write {found[1]}=…")
        raise ConfigurationError(message)


def _beam_options(kind: Any) -> list[Any]:
    found: list[Any] = []
    for child in kind.__subclasses__():
        if child.__module__.startswith("apache_beam.options."):
            found += [child, *_beam_options(child)]
    return found


def parse_values(options: PipelineOptions) -> Values:
    """The value of each of our flags.

    Raises:
      ConfigurationError: Values are invalid; the message lists all of them, each with its remedy.
    """
    ours = options.view_as(InferenceOptions)
    return Values.of({flag.name: getattr(ours, flag.name) for flag in FLAGS}, FLAGS)


def with_flags(message: str) -> str:
    """A message of the library, with its fields replaced by the flags that configure them.

    >>> with_flags("no answer within 120 s (`request_timeout_s`)")
    'no answer within 120 s (--request_timeout_s)'
    """
    return _FIELD.sub(lambda found: _FIELDS.get(found[1], found[0]), message)


def help_text() -> str:
    """The text of ``--help``: our flags, by group."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="python -m pipeline --input_… --prompt … --model … --output_…",
        description="Runs a model on every record; one result or one dead letter each.",
        epilog="Apache Beam's own flags (--runner, --project, --region, --temp_location, …) "
        "work as well.",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    InferenceOptions._add_argparse_args(parser)
    return parser.format_help()
