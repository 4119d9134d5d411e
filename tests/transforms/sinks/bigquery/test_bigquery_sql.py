"""The SQL and the names of the BigQuery sink; the emulator's tests run them."""

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.clients.bigquery import TableName, TableSpec, bigquery_schema
from transforms.records.errors import ConfigurationError
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS
from transforms.sinks.bigquery.latest_view import latest_view_sql

NAME = TableName("p", "d", "t")
HEAD = """\
CREATE OR REPLACE VIEW `p.d.t_latest` AS
SELECT
  * REPLACE (
    SAFE.PARSE_JSON(output_json, wide_number_mode=>'round') AS output_json,
    SAFE.PARSE_JSON(record, wide_number_mode=>'round') AS record)"""
FOOT = """
FROM `p.d.t`
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY record_id ORDER BY created_at DESC) = 1"""


def _typed(schema: dict[str, Any]) -> list[str]:
    """The columns that a schema adds to the view."""
    sql = latest_view_sql(NAME, schema)
    assert sql.startswith(HEAD)
    assert sql.endswith(FOOT)
    added = sql.removeprefix(HEAD).removesuffix(FOOT)
    return [line.removeprefix("  ") for line in added.removeprefix(",\n").split(",\n") if line]


# Names


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("p:d.t", None, ("p", "d", "t")),
        ("p.d.t", None, ("p", "d", "t")),
        ("p:d.t", "other", ("p", "d", "t")),
        ("d.t", "my-project", ("my-project", "d", "t")),
        ("my-project:d_1.t-2", None, ("my-project", "d_1", "t-2")),
        ("example.com:p.d.t", None, ("example.com:p", "d", "t")),
    ],
)
def test_table_name(text: str, default: str | None, expected: tuple[str, str, str]) -> None:
    """Both spellings of a table name work, and the project has a default."""
    name = TableName.parse(text, default)
    assert (name.project, name.dataset, name.table) == expected
    assert str(name) == ".".join(expected)
    assert pickle.loads(pickle.dumps(name)) == name


@pytest.mark.parametrize("text", ["", "t", "d.t", "p:t", "p:d.", ":d.t", "p..t", "..", "p:.t"])
def test_no_table_name(text: str) -> None:
    """The message names the bad text and how to write a table."""
    with pytest.raises(ConfigurationError) as raised:
        TableName.parse(text)
    assert str(raised.value) == f"{text!r} is not a table: write project:dataset.table"


def test_no_table_name_with_a_default() -> None:
    """A default project does not turn a single word into a table."""
    for text in ("t", ".t", "d."):
        with pytest.raises(ConfigurationError):
            TableName.parse(text, "p")


def test_sibling() -> None:
    """A sibling is a table next to this one."""
    assert TableName.parse("p:d.t").sibling("_runs") == TableName("p", "d", "t_runs")


# The view


def test_view_without_schema() -> None:
    """The view has the newest row per record, with its JSON parsed."""
    assert latest_view_sql(NAME) == HEAD + FOOT
    for schema in ({}, {"type": "object"}, {"properties": {}}, {"properties": None}):
        assert latest_view_sql(NAME, schema) == HEAD + FOOT


def test_view_of_all_kinds() -> None:
    """Top-level properties have columns of their types; one with several types stays JSON."""
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "score": {"type": "number"},
            "urgent": {"type": "boolean"},
            "maybe": {"type": ["null", "integer"]},
            "either": {"type": ["string", "integer"]},
            "nothing": {"type": "null"},
            "word": {"enum": ["a", "b"]},
            "mixed": {"enum": ["a", 1]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "inner": {"type": "object", "properties": {"a": {"type": "string"}}},
            "any": {},
            "anything": True,
            "reference": {"$ref": "#/$defs/x"},
        },
    }
    assert latest_view_sql(NAME, schema) == (
        HEAD
        + r""",
  JSON_VALUE(output_json, '$."text"') AS `text`,
  SAFE_CAST(JSON_VALUE(output_json, '$."count"') AS INT64) AS `count`,
  SAFE_CAST(JSON_VALUE(output_json, '$."score"') AS FLOAT64) AS `score`,
  SAFE_CAST(JSON_VALUE(output_json, '$."urgent"') AS BOOL) AS `urgent`,
  SAFE_CAST(JSON_VALUE(output_json, '$."maybe"') AS INT64) AS `maybe`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."either"'), wide_number_mode=>'round') AS `either`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."nothing"'), wide_number_mode=>'round') AS `nothing`,
  JSON_VALUE(output_json, '$."word"') AS `word`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."mixed"'), wide_number_mode=>'round') AS `mixed`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."tags"'), wide_number_mode=>'round') AS `tags`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."inner"'), wide_number_mode=>'round') AS `inner`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."any"'), wide_number_mode=>'round') AS `any`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."anything"'), wide_number_mode=>'round') AS `anything`,
  SAFE.PARSE_JSON(JSON_QUERY(output_json, '$."reference"'), wide_number_mode=>'round') AS `reference`"""
        + FOOT
    )


@pytest.mark.parametrize(
    ("name", "path", "column"),
    [
        ("two words", "two words", "two_words"),
        ("a-b.c", "a-b.c", "a_b_c"),
        ("größe", "größe", "gr__e"),
        ("1st", "1st", "output_1st"),
        ("", "", "output_"),
        ("it's", "it\\'s", "it_s"),
        ('say "hi"', 'say \\\\"hi\\\\"', "say__hi_"),
        ("back\\slash", "back\\\\slash", "back_slash"),
        ("two\nlines\r", "two\\nlines\\r", "two_lines_"),
        ("a`b", "a`b", "a_b"),
        ("x" * 301, "x" * 301, "x" * 300),
    ],
)
def test_view_of_odd_names(name: str, path: str, column: str) -> None:
    """A name is escaped as a JSONPath key and again as a SQL literal; its column is plain."""
    assert _typed({"properties": {name: {"type": "string"}}}) == [
        f"JSON_VALUE(output_json, '$.\"{path}\"') AS `{column}`"
    ]


def test_view_of_names_that_clash() -> None:
    """Our columns stay; names that become equal keep the first, then one with a prefix."""
    names = ["output", "MODEL", "record", "a b", "a-b", "a_b", "A.B", "output_output"]
    assert _typed({"properties": {name: {"type": "string"} for name in names}}) == [
        "JSON_VALUE(output_json, '$.\"output\"') AS `output_output`",
        "JSON_VALUE(output_json, '$.\"MODEL\"') AS `output_MODEL`",
        "JSON_VALUE(output_json, '$.\"record\"') AS `output_record`",
        "JSON_VALUE(output_json, '$.\"a b\"') AS `a_b`",
        "JSON_VALUE(output_json, '$.\"a-b\"') AS `output_a_b`",
        "JSON_VALUE(output_json, '$.\"output_output\"') AS `output_output_output`",
    ]


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), unique=True, max_size=8))
def test_view_of_any_names(names: list[str]) -> None:
    """No name breaks out of its literal, and no column is there twice."""
    typed = _typed_lines(names)
    columns = [line.rpartition(" AS `")[2].removesuffix("`") for line in typed]
    taken = [column.name for column in RESULT_COLUMNS]
    lowered = [column.lower() for column in columns]
    assert len({*taken, *lowered}) == len(taken) + len(lowered)
    assert all(set(column) <= _PLAIN and column for column in columns)
    for line in typed:
        literal = line.removeprefix("JSON_VALUE(output_json, ").rpartition(") AS ")[0]
        inner = literal.removeprefix("'").removesuffix("'")
        unescaped = inner.replace("\\\\", "").replace("\\'", "")
        assert "'" not in unescaped
        assert "\n" not in inner
        assert "\r" not in inner


_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def _typed_lines(names: list[str]) -> list[str]:
    sql = latest_view_sql(NAME, {"properties": {name: {"type": "string"} for name in names}})
    added = sql.removeprefix(HEAD).removesuffix(FOOT)
    return [
        "JSON_VALUE" + line.removesuffix(",\n  ")
        for line in added.split("JSON_VALUE")[1:]
        if "AS `" in line
    ]  # fmt: skip


# Schemas


def test_schema_of_dead_letters() -> None:
    """Dead letters have the contract's names, types and modes, with nested attributes."""
    fields = bigquery_schema(DEAD_LETTER_COLUMNS)
    assert [(f.name, f.field_type, f.mode) for f in fields] == [
        ("timestamp", "TIMESTAMP", "REQUIRED"),
        ("record_id", "STRING", "NULLABLE"),
        ("run_id", "STRING", "REQUIRED"),
        ("stage", "STRING", "REQUIRED"),
        ("error_type", "STRING", "REQUIRED"),
        ("error_message", "STRING", "REQUIRED"),
        ("retryable", "BOOL", "REQUIRED"),
        ("attempts", "INT64", "NULLABLE"),
        *((name, "STRING", "NULLABLE")
          for name in ("backend", "model", "fingerprint", "finish_reason", "output")),
        ("input_tokens", "INT64", "NULLABLE"),
        ("output_tokens", "INT64", "NULLABLE"),
        ("cost_usd", "NUMERIC", "NULLABLE"),
        ("payload", "STRING", "NULLABLE"),
        ("payload_truncated", "BOOL", "NULLABLE"),
        ("payload_bytes", "BYTES", "NULLABLE"),
        ("attributes", "RECORD", "REPEATED"),
        ("stacktrace", "STRING", "NULLABLE"),
    ]  # fmt: skip
    (attributes,) = [field for field in fields if field.name == "attributes"]
    assert [(f.name, f.field_type) for f in attributes.fields] == [
        ("key", "STRING"),
        ("value", "STRING"),
    ]


def test_schema_of_results() -> None:
    """Results have the contract's names, types and modes."""
    assert [(f.name, f.field_type, f.mode) for f in bigquery_schema(RESULT_COLUMNS)] == [
        *((name, "STRING", "REQUIRED")
          for name in ("record_id", "run_id", "fingerprint", "backend", "model")),
        *((name, "STRING", "NULLABLE")
          for name in ("model_version", "service_tier", "output", "output_json")),
        ("embedding", "FLOAT64", "REPEATED"),
        ("finish_reason", "STRING", "NULLABLE"),
        *((name, "INT64", "NULLABLE")
          for name in ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")),
        ("cost_usd", "NUMERIC", "NULLABLE"),
        ("latency_ms", "INT64", "NULLABLE"),
        ("attempts", "INT64", "NULLABLE"),
        ("from_ledger", "BOOL", "NULLABLE"),
        ("created_at", "TIMESTAMP", "REQUIRED"),
        ("record", "STRING", "NULLABLE"),
    ]  # fmt: skip


def test_table_spec_is_picklable() -> None:
    """A table's spec can be pickled for workers."""
    spec = TableSpec(name=NAME, columns=RESULT_COLUMNS, partition_by="created_at", cluster_by=())
    assert pickle.loads(pickle.dumps(spec)) == spec
