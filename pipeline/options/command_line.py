"""Every flag, defined once: the command line, `docs/parameters.md` and the templates come from here.

Every value is one string, because that is all a template parameter can be: booleans are ``true``
or ``false``, lists are separated by commas, JSON stands inline or behind a path, and ``''`` means
not given. `Values` turns them into types; a value that does not fit is a `ConfigurationError` that
holds the value and the remedy.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends import ADAPTERS, backend_flags
from pipeline.options.messages import read_text, suggestion
from pipeline.options.option import Option
from pipeline.options.order_options import ORDER_OPTIONS
from pipeline.options.pace_options import PACE_OPTIONS
from pipeline.options.source import SOURCE_OPTIONS
from transforms.records.errors import ConfigurationError

_REQUEST, _MODEL = "Request", "Model"
_SINKS, _RUN = "Sinks", "Run"
_BOOLEAN = ("true", "false")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")

OPTIONS: tuple[Option, ...] = (
    *SOURCE_OPTIONS,
    Option(
        "prompt",
        _REQUEST,
        "The prompt: a Jinja2 template in which the record's fields are variables.",
        metavar="TEXT",
    ),
    Option("prompt_file", _REQUEST, "A file that holds the prompt.", metavar="URI"),
    Option("messages_field", _REQUEST, "The field that holds a chat: a list of messages."),
    Option("request_field", _REQUEST, "The field that holds a whole provider request."),
    Option("system_prompt", _REQUEST, "The system message: a Jinja2 template."),
    Option("system_prompt_file", _REQUEST, "A file that holds the system message.", metavar="URI"),
    Option(
        "media_fields",
        _REQUEST,
        "Fields with gs:// or https:// URIs of images, PDF, audio or video, to send beside the "
        "prompt; with a MIME type where the URI does not tell it, as in photo:image/jpeg.",
        metavar="A,B:TYPE",
    ),
    Option("max_output_tokens", _REQUEST, "The longest answer, in tokens.", metavar="N"),
    Option("temperature", _REQUEST, "Sampling temperature.", metavar="X"),
    Option(
        "generation_config",
        _REQUEST,
        "max_output_tokens, temperature, top_p, stop and seed are mapped to each provider's "
        "names; others pass through.",
        metavar="JSON",
    ),
    Option(
        "request_options",
        _REQUEST,
        "Further fields of each request: safety settings, labels, tools; for the fake backend its "
        "latency_ms and faults.",
        metavar="JSON",
    ),
    Option(
        "output_schema",
        _REQUEST,
        "A JSON Schema: asked of the model, then checked; answers that do not fit are dead "
        "letters.",
        metavar="URI",
    ),
    Option(
        "accept_truncated",
        _REQUEST,
        "Keep answers that ended at a token limit as results.",
        "false",
        _BOOLEAN,
    ),
    Option(
        "id_field",
        _REQUEST,
        "The field, or a message's attribute, that names a record. By default `id` where there is "
        "one, else the message id or a hash.",
    ),
    Option("task", _REQUEST, "What to ask for.", "generate", ("generate", "embed")),
    Option("preview", _REQUEST, "Render so many requests, print them, send nothing.", metavar="N"),
    Option(
        "backend",
        _MODEL,
        "Who serves the model.",
        "gemini",
        tuple(ADAPTERS),
    ),
    Option(
        "model",
        _MODEL,
        "The model's name; a path for sentence_transformers and vllm, any word for fake.",
    ),
    *backend_flags(),
    *PACE_OPTIONS,
    *ORDER_OPTIONS,
    Option(
        "output_table",
        _SINKS,
        "A BigQuery table for results; dead letters and run summaries go beside it.",
        metavar="PROJECT:DATASET.TABLE",
    ),
    Option(
        "output_path",
        _SINKS,
        "A folder for results, dead letters and run.json: local or gs://.",
        metavar="DIR",
    ),
    Option("output_format", _SINKS, "Format of the files.", "jsonl", ("jsonl", "parquet")),
    Option(
        "dead_letter_table",
        _SINKS,
        "A BigQuery table for dead letters; <output_table>_dead_letters by default.",
        metavar="PROJECT:DATASET.TABLE",
    ),
    Option(
        "dead_letter_path",
        _SINKS,
        "A folder for dead letters; <output_path>/dead_letters by default.",
        metavar="DIR",
    ),
    Option(
        "dead_letter_topic",
        _SINKS,
        "A Pub/Sub topic for dead letters: the payload, with error_type, stage and run_id as "
        "attributes.",
        metavar="projects/P/topics/T",
    ),
    Option(
        "write_mode",
        _SINKS,
        "What to do with rows of earlier runs. Tables append by default; a folder that holds "
        "another run is refused unless this says append or replace.",
        choices=("append", "replace", "fail"),
    ),
    Option(
        "write_method",
        _SINKS,
        "How tables get their rows. By default file_loads for an input that ends (all rows or none), "
        "storage_write for one that does not (rows are visible as they come).",
        choices=("file_loads", "storage_write", "streaming_inserts"),
    ),
    Option(
        "exactly_once",
        _SINKS,
        "Whether storage_write keeps rows from being appended twice when work is repeated, at the "
        "cost of three shuffles. By default true for an input that ends, else false.",
        choices=_BOOLEAN,
    ),
    Option(
        "record_fields",
        _SINKS,
        "Input fields to keep in each result: all, none, or a list.",
        "all",
        metavar="all|none|A,B",
    ),
    Option(
        "run_id",
        _RUN,
        "The run's name. By default time plus random; of a stream the job's name, so that it stays "
        "the same when the job is updated.",
    ),
    Option("wait", _RUN, "Wait for a remote job to end.", "false", _BOOLEAN),
    Option("temp_dataset", _RUN, "For temporary query results.", metavar="PROJECT:DATASET"),
    Option("bigquery_location", _RUN, "Location of BigQuery jobs; the dataset's by default."),
    Option("resource_labels", _RUN, "Labels for cloud resources.", metavar="K=V,K=V"),
)


class InferenceOptions(PipelineOptions):
    """Our flags as Beam options, so that they travel with the pipeline."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        groups: dict[str, Any] = {}
        for option in OPTIONS:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            default = f" Default: {option.default}." if option.default else ""
            groups[option.group].add_argument(
                f"--{option.name}",
                default=option.default,
                metavar="|".join(option.choices) or option.metavar,
                help=(option.help + default).replace("%", "%%"),
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """The values of our flags, read as types."""

    given: Mapping[str, str]

    @classmethod
    def of(cls, options: InferenceOptions) -> "Values":
        """The values of parsed options; a choice that does not exist is refused here."""
        values = cls(
            {o.name: (getattr(options, o.name) or "").strip() or o.default for o in OPTIONS}
        )
        for option in OPTIONS:
            value = values.given[option.name]
            if value and option.choices and value not in option.choices:
                raise ConfigurationError(
                    f"--{option.name} is {value!r}, but must be one of: "
                    f"{', '.join(option.choices)}{suggestion(value, option.choices)}"
                )
        return values

    def text(self, name: str) -> str | None:
        """The value; None when it was not given."""
        return self.given[name] or None

    def require(self, name: str, why: str) -> str:
        """The value.

        Raises:
          ConfigurationError: It was not given; ``why`` says what needs it.
        """
        value = self.given[name]
        if not value:
            raise ConfigurationError(f"--{name} is missing: {why}")
        return value

    def boolean(self, name: str) -> bool:
        """``true`` or ``false``."""
        return self.given[name] == "true"

    def items(self, name: str) -> tuple[str, ...]:
        """A list, separated by commas."""
        return tuple(item.strip() for item in self.given[name].split(",") if item.strip())

    def pairs(self, name: str) -> dict[str, str]:
        """A list of ``key=value``, separated by commas."""
        found = {}
        for item in self.items(name):
            key, equals, value = item.partition("=")
            if not equals or not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"--{name}: {item!r} is no label: write key=value, in lower-case letters, "
                    "digits, - and _ (63 at most)"
                )
            found[key] = value
        return found

    def integer(self, name: str, minimum: int = 1) -> int | None:
        """A whole number; None when it was not given."""
        number = self._number(name, int, "a whole number", minimum)
        return None if number is None else int(number)

    def number(self, name: str, minimum: float = 0.0) -> float | None:
        """A number; None when it was not given."""
        return self._number(name, float, "a number", minimum)

    def _number(self, name: str, kind: Any, wanted: str, minimum: float) -> float | None:
        value = self.given[name]
        if not value:
            return None
        try:
            number = kind(value)
        except ValueError:
            raise ConfigurationError(f"--{name} is {value!r}, but must be {wanted}") from None
        if not minimum <= number < float("inf"):
            raise ConfigurationError(f"--{name} is {value}, but must be at least {minimum:g}")
        return float(number) if kind is float else number

    def json_object(self, name: str) -> dict[str, Any]:
        """A JSON object, inline or in a file; {} when it was not given."""
        value = self.given[name]
        if not value:
            return {}
        text = value if value.startswith(("{", "[")) else read_text(value, f"--{name}")
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"--{name} is not JSON: {error}: {value[:80]!r}") from None
        if not isinstance(parsed, dict):
            raise ConfigurationError(f"--{name} must be a JSON object, not {value[:80]!r}")
        return parsed


def parse_flags(argv: Sequence[str]) -> PipelineOptions:
    """Options from a command line; unlike Beam's own parsing it refuses what it does not know.

    Raises:
      ConfigurationError: An unknown flag, a flag without its value, or a word that is no flag.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    InferenceOptions._add_argparse_args(parser)
    for kind in dict.fromkeys(_beam_options(PipelineOptions)):
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [name for action in parser._actions for name in action.option_strings]
        hint = suggestion(flag, known)
        if not flag.startswith("--"):
            raise ConfigurationError(f"{unknown[0]!r} is no flag: write --name=value")
        raise ConfigurationError(f"unknown flag {flag}{hint}")
    return PipelineOptions(list(argv))


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


def help_text() -> str:
    """What ``--help`` prints: our flags, by group."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="python -m pipeline --input_… --prompt … --model … --output_…",
        description="Asks a model once for each record; one result or one dead letter each.",
        epilog="Apache Beam's own flags (--runner, --project, --region, --temp_location, …) "
        "are taken as well.",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    InferenceOptions._add_argparse_args(parser)
    return parser.format_help()
