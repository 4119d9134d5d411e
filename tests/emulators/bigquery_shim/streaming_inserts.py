"""``tabledata.insertAll`` with the service's rules.

Each row is checked against the schema. One bad row stops the whole request (the good rows
get the reason ``stopped``) unless ``skipInvalidRows`` is set. Rows with an ``insertId`` that
was seen within the last minute are dropped, best effort as in the service.
"""

import time
from typing import Any

from bqemulator.api.routes import tabledata
from bqemulator.domain.errors import NotFoundError

from tests.emulators.bigquery_shim.rows import InvalidRowError, convert_row

DEDUPLICATION_S = 60.0

_seen: dict[tuple[str, str, str, str], float] = {}


class _JsonRequest:
    """Stands in for the HTTP request of the emulator's own handler: it only reads JSON."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    async def json(self) -> dict[str, Any]:
        return self._body


async def insert_all(
    project: str, dataset: str, table: str, body: dict[str, Any], context: Any
) -> dict[str, Any]:
    """Answers one ``insertAll`` request."""
    meta = context.catalog.get_table(project, dataset, table)
    if meta is None:
        raise NotFoundError(f"Not found: Table {project}:{dataset}.{table}")
    good: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for index, row in enumerate(body.get("rows", [])):
        try:
            converted = convert_row(
                meta.schema_.fields,
                row.get("json") or {},
                ignore_unknown=bool(body.get("ignoreUnknownValues")),
                json_as_text=True,
            )
        except InvalidRowError as error:
            errors.append(_insert_error(index, "invalid", error.location, str(error)))
        else:
            good.append({"index": index, "insertId": row.get("insertId"), "json": converted})
    if errors and not body.get("skipInvalidRows"):
        errors += [_insert_error(row["index"], "stopped", "", "") for row in good]
        return _answer(sorted(errors, key=lambda error: error["index"]))
    rows = [row for row in good if _is_new(project, dataset, table, row["insertId"])]
    if rows:
        request = _JsonRequest({"rows": rows})
        await tabledata.insert_all(project, dataset, table, request, context)
    return _answer(errors)


def _is_new(project: str, dataset: str, table: str, insert_id: str | None) -> bool:
    if not insert_id:
        return True
    now = time.monotonic()
    for key in [key for key, seen in _seen.items() if now - seen > DEDUPLICATION_S]:
        del _seen[key]
    key = (project, dataset, table, insert_id)
    if key in _seen:
        return False
    _seen[key] = now
    return True


def _insert_error(index: int, reason: str, location: str, message: str) -> dict[str, Any]:
    detail = {"reason": reason, "location": location, "debugInfo": "", "message": message}
    return {"index": index, "errors": [detail]}


def _answer(errors: list[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
    return answer | ({"insertErrors": errors} if errors else {})
