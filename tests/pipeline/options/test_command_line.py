"""Flags: one definition, strict values, and messages that name the value and the remedy."""

import argparse
import pathlib
from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.backends.shared import ENDPOINT, MODEL
from pipeline.options.command_line import (
    FLAGS,
    InferenceOptions,
    help_text,
    parse_flags,
    parse_values,
)
from pipeline.options.pace import RECORD_DEADLINE_S, REQUEST_TIMEOUT_S
from pipeline.options.request import (
    GENERATION_CONFIG,
    ID_FIELD,
    PREVIEW,
    PROMPT,
    TEMPERATURE,
)
from pipeline.options.run import RESOURCE_LABELS, WAIT
from pipeline.options.source import INPUT_FIELDS, LIMIT
from pipeline.options.values import Values
from transforms.records.errors import ConfigurationError


def _values(*argv: str) -> Values:
    return parse_values(parse_flags(argv))


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _values(*argv)
    return str(raised.value)


# The definition


def test_every_flag_once() -> None:
    """Names are snake case and unique; a default is one of the choices."""
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    for flag in FLAGS:
        assert flag.name == flag.name.lower()
        assert flag.name.replace("_", "").isalnum()
        assert flag.help.endswith(".")
        assert not flag.kind.choices or flag.default_text in ("", *flag.kind.choices)


def test_defaults_of_the_contract() -> None:
    """These flags have these defaults, and no other flag has one."""
    assert {flag.name: flag.default_text for flag in FLAGS if flag.default_text} == {
        "accept_truncated": "false",
        "task": "generate",
        "backend": "gemini",
        "generate_api": "chat",
        "predict_method": "predict",
        "max_concurrency": "2048",
        "max_attempts": "5",
        "request_timeout_s": "120",
        "record_deadline_s": "3600",
        "max_dead_letter_ratio": "0.2",
        "max_batch_size": "256",
        "max_batch_wait_s": "1",
        "batch_keys": "1",
        "prefix_chars": "1000",
        "output_format": "jsonl",
        "record_fields": "all",
        "wait": "false",
    }


def test_flags_do_not_clash_with_beams() -> None:
    """Each of our flags works next to each of Beam's, and none is a prefix of another."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for kind in [InferenceOptions, *_all_beam_options(PipelineOptions)]:
        kind._add_argparse_args(parser)
    assert set(map(str, FLAGS)) <= set(parser._option_string_actions)


def _all_beam_options(kind: Any) -> list[Any]:
    found = []
    for child in kind.__subclasses__():
        if child.__module__.startswith("apache_beam.options."):
            found += [child, *_all_beam_options(child)]
    return list(dict.fromkeys(found))


def test_help() -> None:
    """The help lists every flag with its default under its group."""
    text = help_text()
    for flag in FLAGS:
        assert f"{flag} " in text
    for group in ("Source:", "Request:", "Model:", "Pace:", "Sinks:", "Run:"):
        assert f"\n{group}\n" in text
    assert "Default: gemini." in text
    assert "unused" not in text


# The command line


def test_set_and_unset_values() -> None:
    """Both spellings of a value work, blank values count as unset, and values are stripped."""
    values = _values("--limit=5", "--prompt", " Hello {{ name }} ", "--model=", "--endpoint=  ")
    assert (values[LIMIT], values.text(LIMIT)) == (5, "5")
    assert values[PROMPT] == values.text(PROMPT) == "Hello {{ name }}"
    assert values[MODEL] is values[ENDPOINT] is values[ID_FIELD] is None
    assert values.text(MODEL) == ""
    assert (values[PREVIEW], values[TEMPERATURE]) == (None, None)
    assert (values[INPUT_FIELDS], values[GENERATION_CONFIG]) == ((), {})


def test_empty_is_the_default() -> None:
    """An empty value equals an absent flag, because a template passes every parameter."""
    empty = _values(*(f"{flag}=" for flag in FLAGS))
    assert empty == _values()
    assert empty.given == {flag.name: flag.default_text for flag in FLAGS}
    assert empty.parsed == {flag.name: flag.default for flag in FLAGS}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--promt=x"], "unknown flag --promt; did you mean --prompt?"),
        (["--output-path=x"], "unknown flag --output-path; did you mean --output_path?"),
        (["--runer=x"], "unknown flag --runer; did you mean --runner?"),
        (["--zzzzzzzz", "x"], "unknown flag --zzzzzzzz"),
        (["--max_concurrenc=1"], "unknown flag --max_concurrenc; did you mean --max_concurrency?"),
        (["word"], "'word' is not a flag: write --name=value"),
        (["-x"], "'-x' is not a flag: write --name=value"),
        (["--limit"], "--limit has no value: write --limit=…"),
    ],
)
def test_unknown_flags(argv: list[str], message: str) -> None:
    """An unknown flag is rejected with the nearest one that exists; no flag may be shortened."""
    assert _refused(*argv) == message


def test_beams_flags_pass() -> None:
    """Beam's flags reach Beam unchanged."""
    options = parse_flags(
        [
            "--runner=DataflowRunner",
            "--project=p",
            "--region=europe-west1",
            "--temp_location=gs://b/t",
            "--max_num_workers=3",
            "--experiments=a",
            "--experiments=b",
            "--direct_num_workers=2",
            "--labels=k=v",
            "--streaming",
        ]
    )
    assert options.view_as(StandardOptions).runner == "DataflowRunner"
    assert options.view_as(StandardOptions).streaming is True
    cloud = options.view_as(GoogleCloudOptions)
    assert (cloud.project, cloud.region, cloud.temp_location) == ("p", "europe-west1", "gs://b/t")
    assert cloud.labels == ["k=v"]
    assert options.view_as(WorkerOptions).max_num_workers == 3


# Values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--backend=gemeni",
            (
                "--backend is 'gemeni', but must be one of: gemini, vertex_endpoint, openai, "
                "vllm, sentence_transformers, fake; did you mean gemini?"
            ),
        ),
        (
            "--input_format=json",
            (
                "--input_format is 'json', but must be one of: jsonl, csv, parquet, avro, txt, "
                "objects; did you mean jsonl?"
            ),
        ),
        ("--task=x", "--task is 'x', but must be one of: generate, embed"),
        ("--output_format=csv", "--output_format is 'csv', but must be one of: jsonl, parquet"),
        (
            "--write_mode=overwrite",
            "--write_mode is 'overwrite', but must be one of: append, replace, fail",
        ),
        ("--wait=True", "--wait is 'True', but must be one of: true, false; did you mean true?"),
        ("--wait=1", "--wait is '1', but must be one of: true, false"),
        (
            "--accept_truncated=yes",
            "--accept_truncated is 'yes', but must be one of: true, false",
        ),
        (
            "--predict_method=raw",
            "--predict_method is 'raw', but must be one of: predict, raw_predict",
        ),
    ],
)
def test_choices(argv: str, message: str) -> None:
    """A wrong choice is rejected with the value, the choices and the nearest one."""
    assert _refused(argv) == message


def test_booleans() -> None:
    """A boolean is ``true`` or ``false``; without a default it is false."""
    assert _values("--wait=true")[WAIT] is True
    assert _values("--wait=false")[WAIT] is False
    assert _values()[WAIT] is False


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "--limit is 'x', but must be a whole number"),
        ("1.5", "--limit is '1.5', but must be a whole number"),
        ("1e3", "--limit is '1e3', but must be a whole number"),
        ("0", "--limit is 0, but must be at least 1"),
        ("-3", "--limit is -3, but must be at least 1"),
    ],
)
def test_whole_numbers(value: str, message: str) -> None:
    """A wrong whole number is rejected with the value and the bound."""
    assert _refused(f"--limit={value}") == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("warm", "--temperature is 'warm', but must be a number"),
        ("-0.1", "--temperature is -0.1, but must be at least 0"),
        ("nan", "--temperature is nan, but must be at least 0"),
        ("-inf", "--temperature is -inf, but must be at least 0"),
    ],
)
def test_numbers(value: str, message: str) -> None:
    """A wrong number is rejected with the value and the bound, infinity and NaN included."""
    assert _refused(f"--temperature={value}") == message


def test_endless_number() -> None:
    """No deadline may be infinite."""
    message = _refused("--record_deadline_s=inf")
    assert message.startswith(f"{RECORD_DEADLINE_S} is inf, but must be ")


def test_numbers_that_fit() -> None:
    """Numbers have their types, and zero is accepted where it is allowed."""
    values = _values("--temperature=0", "--limit=7", "--request_timeout_s=0.5")
    assert values[TEMPERATURE] == 0.0
    assert isinstance(values[TEMPERATURE], float)
    assert values[LIMIT] == 7
    assert isinstance(values[LIMIT], int)
    assert values[REQUEST_TIMEOUT_S] == 0.5


def test_lists() -> None:
    """Commas separate the items of a list; blank items are dropped."""
    assert _values("--input_fields=a, b ,,c")[INPUT_FIELDS] == ("a", "b", "c")
    assert _values("--input_fields=,")[INPUT_FIELDS] == ()


def test_labels() -> None:
    """Labels are pairs as Google Cloud accepts them; others are rejected with the rule."""
    values = _values("--resource_labels=team=search, stage=, cost-centre=a_1")
    assert values[RESOURCE_LABELS] == {"team": "search", "stage": "", "cost-centre": "a_1"}
    assert _values()[RESOURCE_LABELS] == {}
    for item in ("team", "=x", "Team=x", "team=X", "1=x", "team=" + "x" * 64):
        assert _refused(f"--resource_labels=a=b,{item}") == (
            f"--resource_labels: {item!r} is not a label: write key=value, in lower-case letters, "
            "digits, - and _ (63 at most)"
        )


def test_require() -> None:
    """A missing value is reported with the setting that needs it."""
    assert _values("--model=m").require(MODEL, "why") == "m"
    with pytest.raises(ConfigurationError) as raised:
        _values().require(MODEL, "which model, e.g. --model=m")
    assert str(raised.value) == "--model is missing: which model, e.g. --model=m"


# JSON


def test_json_inline_and_by_file(tmp_path: pathlib.Path) -> None:
    """A value that begins with a brace is an object; any other is the path of one."""
    expected = {"top_p": 0.5, "stop": ["é"]}
    text = '{"top_p": 0.5, "stop": ["é"]}'
    path = tmp_path / "config.json"
    assert _values(f"--generation_config={text}")[GENERATION_CONFIG] == expected
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("\n " + text, encoding)
        assert _values(f"--generation_config={path}")[GENERATION_CONFIG] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{'a': 1}",
            (
                "--generation_config is not JSON: Expecting property name enclosed in double quotes: "
                "line 1 column 2 (char 1): \"{'a': 1}\""
            ),
        ),
        (
            '{"a": 1',
            (
                "--generation_config is not JSON: Expecting ',' delimiter: line 1 column 8 (char 7): "
                "'{\"a\": 1'"
            ),
        ),
        ("[1]", "--generation_config must be a JSON object, not '[1]'"),
        (
            "nowhere.json",
            "--generation_config: cannot read 'nowhere.json': No such file or directory",
        ),
    ],
)
def test_invalid_json(text: str, message: str) -> None:
    """Invalid JSON is rejected with the error's position and the beginning of the value."""
    assert _refused(f"--generation_config={text}") == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "--output_schema must be a JSON object, not '{path}'"),
        (b"", "--output_schema is not JSON: Expecting value: line 1 column 1 (char 0): '{path}'"),
        (b'{"a": "\xff"}', "--output_schema: '{path}' is not UTF-8 (byte 7)"),
        (None, "--output_schema: cannot read '{path}': No such file or directory"),
    ],
)
def test_invalid_json_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, message: str
) -> None:
    """The message about a bad JSON file names its path."""
    monkeypatch.chdir(tmp_path)
    path = "schema.json"
    if data is not None:
        pathlib.Path(path).write_bytes(data)
    assert _refused(f"--output_schema={path}") == message.format(path=path)
