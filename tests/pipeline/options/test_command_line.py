"""Flags: one definition, strict values, and messages that hold the value and the remedy."""

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

from pipeline.options.command_line import (
    OPTIONS,
    InferenceOptions,
    Values,
    help_text,
    parse_flags,
)
from transforms.records.errors import ConfigurationError


def _values(*argv: str) -> Values:
    return Values.of(parse_flags(argv).view_as(InferenceOptions))


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _values(*argv)
    return str(raised.value)


# The definition


def test_every_flag_once() -> None:
    """Names are snake case and unique; a default is one of the choices."""
    names = [option.name for option in OPTIONS]
    assert len(names) == len(set(names))
    for option in OPTIONS:
        assert option.name == option.name.lower()
        assert option.name.replace("_", "").isalnum()
        assert option.help.endswith(".")
        assert not option.choices or option.default in ("", *option.choices)


def test_defaults_of_the_contract() -> None:
    """Exactly these, and nothing else has a default."""
    assert {option.name: option.default for option in OPTIONS if option.default} == {
        "accept_truncated": "false",
        "task": "generate",
        "backend": "gemini",
        "predict_method": "predict",
        "max_concurrency": "2048",
        "max_attempts": "5",
        "request_timeout_s": "120",
        "record_deadline_s": "3600",
        "max_dead_letter_ratio": "0.2",
        "max_batch_size": "256",
        "max_batch_wait_s": "1",
        "batch_keys": "1",
        "output_format": "jsonl",
        "record_fields": "all",
        "wait": "false",
    }


def test_flags_do_not_clash_with_beams() -> None:
    """Each of ours can stand beside each of Beam's, and is no prefix trap."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for kind in [InferenceOptions, *_all_beam_options(PipelineOptions)]:
        kind._add_argparse_args(parser)
    assert {f"--{option.name}" for option in OPTIONS} <= set(parser._option_string_actions)


def _all_beam_options(kind: Any) -> list[Any]:
    found = []
    for child in kind.__subclasses__():
        if child.__module__.startswith("apache_beam.options."):
            found += [child, *_all_beam_options(child)]
    return list(dict.fromkeys(found))


def test_help() -> None:
    """Every flag is in it, with its default, under its group."""
    text = help_text()
    for option in OPTIONS:
        assert f"--{option.name} " in text
    for group in ("Source:", "Request:", "Model:", "Pace:", "Sinks:", "Run:"):
        assert f"\n{group}\n" in text
    assert "Default: gemini." in text
    assert "unused" not in text


# The command line


def test_given_and_not_given() -> None:
    """Both ways of writing a value; '' and blanks are not given; white space around is no value."""
    values = _values("--limit=5", "--prompt", " Hello {{ name }} ", "--model=", "--endpoint=  ")
    assert values.integer("limit") == 5
    assert values.text("prompt") == "Hello {{ name }}"
    assert values.text("model") is values.text("endpoint") is values.text("id_field") is None
    assert (values.integer("preview"), values.number("temperature")) == (None, None)
    assert (values.items("input_fields"), values.json_object("generation_config")) == ((), {})


def test_empty_is_the_default() -> None:
    """A template hands every parameter on: '' is as if the flag were not there."""
    empty = _values(*(f"--{option.name}=" for option in OPTIONS))
    assert empty == _values()
    assert empty.given == {option.name: option.default for option in OPTIONS}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--promt=x"], "unknown flag --promt; did you mean --prompt?"),
        (["--output-path=x"], "unknown flag --output-path; did you mean --output_path?"),
        (["--runer=x"], "unknown flag --runer; did you mean --runner?"),
        (["--zzzzzzzz", "x"], "unknown flag --zzzzzzzz"),
        (["--max_concurrenc=1"], "unknown flag --max_concurrenc; did you mean --max_concurrency?"),
        (["word"], "'word' is no flag: write --name=value"),
        (["-x"], "'-x' is no flag: write --name=value"),
        (["--limit"], "--limit has no value: write --limit=…"),
    ],
)
def test_what_is_no_flag(argv: list[str], message: str) -> None:
    """Refused, with the nearest one that exists; no flag may be shortened."""
    assert _refused(*argv) == message


def test_beams_flags_pass() -> None:
    """They reach Beam as they stand."""
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
    """The value, what there is, and the nearest of them."""
    assert _refused(argv) == message


def test_booleans() -> None:
    """``true`` or ``false``; without a default it is false."""
    assert _values("--wait=true").boolean("wait") is True
    assert _values("--wait=false").boolean("wait") is False
    assert _values().boolean("wait") is False


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
    """Each refusal holds the value and the bound."""
    with pytest.raises(ConfigurationError) as raised:
        _values(f"--limit={value}").integer("limit")
    assert str(raised.value) == message


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
    """Likewise; what is no number and what is endless is refused."""
    with pytest.raises(ConfigurationError) as raised:
        _values(f"--temperature={value}").number("temperature")
    assert str(raised.value) == message


def test_endless_number() -> None:
    """No deadline is endless."""
    with pytest.raises(ConfigurationError, match=r"^--record_deadline_s is inf, but must be "):
        _values("--record_deadline_s=inf").number("record_deadline_s")


def test_numbers_that_fit() -> None:
    """As types, zero included where it is allowed."""
    values = _values("--temperature=0", "--limit=7", "--request_timeout_s=0.5")
    assert values.number("temperature") == 0.0
    assert isinstance(values.number("temperature"), float)
    assert values.integer("limit") == 7
    assert isinstance(values.integer("limit"), int)
    assert values.number("request_timeout_s", 0.001) == 0.5


def test_lists() -> None:
    """Separated by commas; blanks are nothing."""
    assert _values("--input_fields=a, b ,,c").items("input_fields") == ("a", "b", "c")
    assert _values("--input_fields=,").items("input_fields") == ()


def test_labels() -> None:
    """Pairs, as Google Cloud takes them; another is refused with the rule."""
    values = _values("--resource_labels=team=search, stage=, cost-centre=a_1")
    assert values.pairs("resource_labels") == {"team": "search", "stage": "", "cost-centre": "a_1"}
    assert _values().pairs("resource_labels") == {}
    for item in ("team", "=x", "Team=x", "team=X", "1=x", "team=" + "x" * 64):
        with pytest.raises(ConfigurationError) as raised:
            _values(f"--resource_labels=a=b,{item}").pairs("resource_labels")
        assert str(raised.value) == (
            f"--resource_labels: {item!r} is no label: write key=value, in lower-case letters, "
            "digits, - and _ (63 at most)"
        )


def test_require() -> None:
    """A missing value says what needs it."""
    assert _values("--model=m").require("model", "why") == "m"
    with pytest.raises(ConfigurationError) as raised:
        _values().require("model", "which model, e.g. --model=m")
    assert str(raised.value) == "--model is missing: which model, e.g. --model=m"


# JSON


def test_json_inline_and_by_file(tmp_path: pathlib.Path) -> None:
    """An object that begins with a brace, else the path of one, with or without a BOM."""
    expected = {"top_p": 0.5, "stop": ["é"]}
    text = '{"top_p": 0.5, "stop": ["é"]}'
    path = tmp_path / "config.json"
    assert _values(f"--generation_config={text}").json_object("generation_config") == expected
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("\n " + text, encoding)
        assert _values(f"--generation_config={path}").json_object("generation_config") == expected


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
def test_json_that_is_none(text: str, message: str) -> None:
    """The error's place and the value's beginning."""
    with pytest.raises(ConfigurationError) as raised:
        _values(f"--generation_config={text}").json_object("generation_config")
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "--output_schema must be a JSON object, not '{path}'"),
        (b"", "--output_schema is not JSON: Expecting value: line 1 column 1 (char 0): '{path}'"),
        (b'{"a": "\xff"}', "--output_schema: '{path}' is not UTF-8 (byte 7)"),
        (None, "--output_schema: cannot read '{path}': No such file or directory"),
    ],
)
def test_json_file_that_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, message: str
) -> None:
    """The message holds the path."""
    monkeypatch.chdir(tmp_path)
    path = "schema.json"
    if data is not None:
        pathlib.Path(path).write_bytes(data)
    with pytest.raises(ConfigurationError) as raised:
        _values(f"--output_schema={path}").json_object("output_schema")
    assert str(raised.value) == message.format(path=path)
