"""Datasets and tables as the service lists and describes them.

``datasets.list`` honours ``filter``, which is vital: after a direct read Beam deletes every dataset
that a list filtered by its own labels returns, so an emulator that ignores the filter loses all
datasets of the project. Schemas have the API's legacy type names (INTEGER for INT64), whatever name
created the column.
"""

from collections.abc import Callable
from typing import Any

from bqemulator.api.routes import datasets, tables
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns

LEGACY_TYPE_NAMES = {
    "INT64": "INTEGER",
    "FLOAT64": "FLOAT",
    "BOOL": "BOOLEAN",
    "STRUCT": "RECORD",
}


def list_datasets(
    project: str, label_filter: str, max_results: int, context: Any
) -> dict[str, Any]:
    """Answers ``datasets.list`` with the datasets that have all the labels of the filter.

    Args:
        project: whose datasets.
        label_filter: ``labels.name:value`` or ``labels.name`` terms between spaces; empty
            for all datasets.
        max_results: the most to return; there is no second page.
        context: the emulator's.
    """
    terms = [term.removeprefix("labels.").partition(":") for term in label_filter.split()]
    found = [
        dataset
        for dataset in context.catalog.list_datasets(project)
        if all(
            name in dataset.labels and (not value or dataset.labels[name] == value)
            for name, _, value in terms
        )
    ]
    items = [datasets._dataset_to_rest(dataset) for dataset in found[:max_results]]
    return {"kind": "bigquery#datasetList", "datasets": items, "totalItems": len(found)}


def with_legacy_type_names(
    stock_field_to_rest: Callable[[Any], dict[str, Any]],
) -> Callable[[Any], dict[str, Any]]:
    """Returns the emulator's rendering of a column with the API's type names."""

    def field_to_rest(field: Any) -> dict[str, Any]:
        rendered = stock_field_to_rest(field)
        return rendered | {"type": LEGACY_TYPE_NAMES.get(rendered["type"], rendered["type"])}

    return field_to_rest


async def patch_table(names: tuple[str, str, str], request: Any, context: Any) -> dict[str, Any]:
    """Changes a table; columns that a new schema adds are added to the stored table, too."""
    before = context.catalog.get_table(*names)
    answer: dict[str, Any] = await tables.patch_table(*names, request, context)
    known = {field.name for field in before.schema_.fields} if before else set()
    fields = (await request.json()).get("schema", {}).get("fields", [])
    for name, kind in bq_schema_to_duckdb_columns([f for f in fields if f["name"] not in known]):
        context.engine.execute(f'ALTER TABLE {quoted_table_ref(*names)} ADD COLUMN "{name}" {kind}')
    return answer
