"""The view ``<table>_latest``: the newest result per record, with typed columns."""

from collections.abc import Mapping
from typing import Any

from transforms.clients.bigquery import TableName
from transforms.results.rows import RESULT_COLUMNS

_SQL_ESCAPES = (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"))
_SQL_TYPES = {"integer": "INT64", "number": "FLOAT64", "boolean": "BOOL"}


def latest_view_sql(name: TableName, output_schema: Mapping[str, Any] | None = None) -> str:
    """The statement that creates the view ``<table>_latest``: the newest row per record.

    Its JSON columns are parsed. Each top-level property of the output schema becomes a typed column,
    called ``output_<name>`` where a column has that name already.
    """
    taken = {column.name for column in RESULT_COLUMNS}
    typed = []
    for prop, schema in ((output_schema or {}).get("properties") or {}).items():
        column = "".join(c if c.isascii() and c.isalnum() else "_" for c in prop)[:300]
        if not column or column[0].isdigit() or column.lower() in taken:
            column = f"output_{column}"
        if column.lower() in taken:
            continue
        taken.add(column.lower())
        typed.append(f"  {_typed_property(prop, schema)} AS `{column}`")
    columns = [
        "  * REPLACE (",
        "    SAFE.PARSE_JSON(output_json, wide_number_mode=>'round') AS output_json,",
        "    SAFE.PARSE_JSON(record, wide_number_mode=>'round') AS record)",
    ]
    select = "\n".join(columns) + "".join(",\n" + line for line in typed)
    return (
        f"CREATE OR REPLACE VIEW `{name.sibling('_latest')}` AS\n"
        f"SELECT\n{select}\nFROM `{name}`\nWHERE TRUE\n"
        "QUALIFY ROW_NUMBER() OVER (PARTITION BY record_id ORDER BY created_at DESC) = 1"
    )


def _typed_property(name: str, schema: Any) -> str:
    quoted = name.replace('"', '\\"')  # quoted for JSONPath, then escaped for a SQL literal
    for text, escape in _SQL_ESCAPES:
        quoted = quoted.replace(text, escape)
    path = f"'$.\"{quoted}\"'"
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, list):  # ["string", "null"]
        kinds = [item for item in kind if item != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    if kind is None and isinstance(schema, dict) and "enum" in schema:
        kind = "string" if all(isinstance(v, str) for v in schema["enum"]) else None
    if kind == "string":
        return f"JSON_VALUE(output_json, {path})"
    if kind in _SQL_TYPES:
        return f"SAFE_CAST(JSON_VALUE(output_json, {path}) AS {_SQL_TYPES[kind]})"
    return f"SAFE.PARSE_JSON(JSON_QUERY(output_json, {path}), wide_number_mode=>'round')"
