"""The loopback Google Cloud with the real client code of Google and Beam."""

import base64
import datetime as dt
import gzip
import io
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.bigquery import ReadFromBigQuery
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from google.api_core import exceptions
from google.cloud import bigquery

from tests.emulators.google_cloud import PROJECT, LoopbackCloud

SCHEMA = [
    bigquery.SchemaField("id", "STRING", "REQUIRED"),
    bigquery.SchemaField("n", "INT64"),
]


@pytest.fixture
def client(redirected_clients: LoopbackCloud) -> Iterable[bigquery.Client]:
    """A client made as a pipeline makes it, from the environment alone."""
    with bigquery.Client() as made:
        yield made


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Returns the rows as JSON Lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def load_config(**options: Any) -> bigquery.LoadJobConfig:
    """Returns a configuration for a JSON Lines load."""
    return bigquery.LoadJobConfig(source_format="NEWLINE_DELIMITED_JSON", **options)


def load(client: bigquery.Client, table: str, rows: list[dict[str, Any]], **options: Any) -> Any:
    """Uploads the rows as a load job and returns the job, done."""
    config = load_config(**({"schema": SCHEMA} | options))
    return client.load_table_from_file(
        io.BytesIO(json_lines(rows)), table, job_config=config
    ).result()


def contents(client: bigquery.Client, table: str, order: str = "id") -> list[tuple[Any, ...]]:
    """Returns the table's rows in an order."""
    return [tuple(row) for row in client.query(f"SELECT * FROM `{table}` ORDER BY {order}")]


def write_object(url: str, content: bytes, mime_type: str = "application/octet-stream") -> None:
    """Writes one object with exactly these bytes."""
    with FileSystems.create(url, mime_type, CompressionTypes.UNCOMPRESSED) as file:
        file.write(content)


def read_object(url: str, compression: str = CompressionTypes.UNCOMPRESSED) -> bytes:
    """Reads one object."""
    with FileSystems.open(url, compression_type=compression) as file:
        content: bytes = file.read()
        return content


# Tables and load jobs.


def test_table_keeps_partitioning_and_clustering(
    client: bigquery.Client, bigquery_dataset: str
) -> None:
    """A table created with a layout is described with that layout."""
    table = bigquery.Table(
        f"{bigquery_dataset}.t", [*SCHEMA, bigquery.SchemaField("created_at", "TIMESTAMP")]
    )
    table.time_partitioning = bigquery.TimePartitioning("DAY", field="created_at")
    table.clustering_fields = ["id"]

    client.create_table(table)

    found = client.get_table(f"{bigquery_dataset}.t")
    assert found.time_partitioning.type_ == "DAY"
    assert found.time_partitioning.field == "created_at"
    assert found.clustering_fields == ["id"]
    assert [(field.name, field.field_type, field.mode) for field in found.schema] == [
        ("id", "STRING", "REQUIRED"),
        ("n", "INTEGER", "NULLABLE"),
        ("created_at", "TIMESTAMP", "NULLABLE"),
    ]


def test_load_that_creates_a_table_gives_it_the_layout(
    client: bigquery.Client, bigquery_dataset: str
) -> None:
    """Partitioning and clustering of a load job reach the table that it creates."""
    table = f"{bigquery_dataset}.t"
    schema = [bigquery.SchemaField("id", "STRING"), bigquery.SchemaField("day", "DATE")]

    load(
        client,
        table,
        [{"id": "a", "day": "2026-01-02"}],
        schema=schema,
        time_partitioning=bigquery.TimePartitioning("DAY", field="day"),
        clustering_fields=["id"],
    )

    found = client.get_table(table)
    assert found.time_partitioning.field == "day"
    assert found.clustering_fields == ["id"]
    assert found.num_rows == 1


def test_missing_table_is_not_found(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A missing table raises NotFound."""
    with pytest.raises(exceptions.NotFound):
        client.get_table(f"{bigquery_dataset}.missing")


def test_file_loads_append_and_truncate(client: bigquery.Client, bigquery_dataset: str) -> None:
    """Appends add, truncates replace, and each job reports its own rows only."""
    table = f"{bigquery_dataset}.t"

    first = load(client, table, [{"id": "a", "n": 1}, {"id": "b"}])
    second = load(client, table, [{"id": "c", "n": 3}], write_disposition="WRITE_APPEND")
    assert (first.output_rows, second.output_rows) == (2, 1)
    assert contents(client, table) == [("a", 1), ("b", None), ("c", 3)]

    third = load(client, table, [{"id": "d", "n": 4}], write_disposition="WRITE_TRUNCATE")
    assert third.output_rows == 1
    assert contents(client, table) == [("d", 4)]


def test_failed_load_changes_nothing(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A bad row fails the whole job, even a truncating one, and the table stays as it was."""
    table = f"{bigquery_dataset}.t"
    load(client, table, [{"id": "a", "n": 1}])

    for row in ({"id": "b", "n": "x"}, {"n": 2}, {"id": "b", "other": 1}, {"id": "b", "n": 1.5}):
        with pytest.raises(exceptions.BadRequest):
            load(client, table, [{"id": "z"}, row], write_disposition="WRITE_TRUNCATE")

    assert contents(client, table) == [("a", 1)]


def test_failed_load_leaves_no_new_table(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A table that a failing load would have created does not exist."""
    with pytest.raises(exceptions.BadRequest):
        load(client, f"{bigquery_dataset}.t", [{"id": None}])

    with pytest.raises(exceptions.NotFound):
        client.get_table(f"{bigquery_dataset}.t")


def test_several_objects_load_in_one_job(
    client: bigquery.Client, bigquery_dataset: str, bucket: str
) -> None:
    """Explicit URIs, a wildcard over folders and a gzip object all load, counted together."""
    write_object(f"gs://{bucket}/a.jsonl", json_lines([{"id": "a", "n": 1}, {"id": "b", "n": 2}]))
    write_object(f"gs://{bucket}/more/c.jsonl", json_lines([{"id": "c", "n": 3}]))
    write_object(f"gs://{bucket}/more/x/d.gz", gzip.compress(json_lines([{"id": "d", "n": 4}])))
    table = f"{bigquery_dataset}.t"

    job: Any = client.load_table_from_uri(
        [f"gs://{bucket}/a.jsonl", f"gs://{bucket}/more/*"],
        table,
        job_config=load_config(schema=SCHEMA),
    ).result()

    assert (job.output_rows, job.input_files) == (4, 3)
    assert contents(client, table) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]


def test_load_of_a_missing_object_is_not_found(
    client: bigquery.Client, bigquery_dataset: str, bucket: str
) -> None:
    """One missing URI fails the job, and the rows of the others do not arrive."""
    write_object(f"gs://{bucket}/a.jsonl", json_lines([{"id": "a"}]))
    uris = [f"gs://{bucket}/a.jsonl", f"gs://{bucket}/b.jsonl"]
    client.create_table(bigquery.Table(f"{bigquery_dataset}.t", SCHEMA))

    with pytest.raises(exceptions.NotFound):
        client.load_table_from_uri(uris, f"{bigquery_dataset}.t", job_config=load_config()).result()

    assert contents(client, f"{bigquery_dataset}.t") == []


def test_job_id_works_once(client: bigquery.Client, bigquery_dataset: str, bucket: str) -> None:
    """A second load with a job id raises Conflict, writes nothing, and the first is found."""
    url, table = f"gs://{bucket}/a.jsonl", f"{bigquery_dataset}.t"
    write_object(url, json_lines([{"id": "a", "n": 1}]))
    config = load_config(schema=SCHEMA)
    job_id = f"load_{bigquery_dataset.rpartition('.')[2]}"
    client.load_table_from_uri(url, table, job_id=job_id, job_config=config).result()

    with pytest.raises(exceptions.Conflict):
        client.load_table_from_uri(url, table, job_id=job_id, job_config=config)

    job: Any = client.get_job(job_id)
    assert (job.state, job.error_result, job.output_rows) == ("DONE", None, 1)
    assert contents(client, table) == [("a", 1)]


def test_upload_keeps_its_job_id(client: bigquery.Client, bigquery_dataset: str) -> None:
    """An uploaded load job can be found by the client's id, which works once as well."""
    table, job_id = f"{bigquery_dataset}.t", f"up_{bigquery_dataset.rpartition('.')[2]}"
    config = load_config(schema=SCHEMA)
    rows = json_lines([{"id": "a", "n": 1}])
    client.load_table_from_file(io.BytesIO(rows), table, job_id=job_id, job_config=config).result()

    with pytest.raises(exceptions.Conflict):
        client.load_table_from_file(
            io.BytesIO(rows), table, job_id=job_id, job_config=config, num_retries=0
        )

    job: Any = client.get_job(job_id)
    assert job.output_rows == 1
    assert contents(client, table) == [("a", 1)]


def test_load_converts_every_type(client: bigquery.Client, bigquery_dataset: str) -> None:
    """Each type arrives as the client's Python type for it; base64 becomes bytes."""
    load(client, f"{bigquery_dataset}.t", [TYPED_ROW], schema=TYPED_SCHEMA)

    (row,) = client.query(f"SELECT * FROM `{bigquery_dataset}.t`")

    assert math.isnan(row["f"])
    assert {name: value for name, value in row.items() if name != "f"} == {
        "id": "a",
        "b": b"\x00\xff",
        "num": Decimal("1.5"),
        "ts": dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
        "day": dt.date(2026, 1, 2),
        "nothing": None,
        "tags": ["x", "y"],
        "rec": {"k": "v", "n": 7},
    }


def test_streaming_insert_is_strict(client: bigquery.Client, bigquery_dataset: str) -> None:
    """One bad row stops the others; with skip_invalid_rows the good ones arrive, once."""
    table = f"{bigquery_dataset}.t"
    client.create_table(bigquery.Table(table, SCHEMA))
    rows: list[dict[str, Any]] = [{"id": "a", "n": 1}, {"id": "b", "x": 1}, {"n": 2}]

    errors = client.insert_rows_json(table, rows, row_ids=["1", "2", "3"])
    reasons = {error["index"]: error["errors"][0]["reason"] for error in errors}
    assert reasons == {0: "stopped", 1: "invalid", 2: "invalid"}
    assert contents(client, table) == []

    for _ in range(2):
        errors = client.insert_rows_json(
            table, rows, row_ids=["1", "2", "3"], skip_invalid_rows=True
        )
        assert [error["index"] for error in errors] == [1, 2]
    assert contents(client, table) == [("a", 1)]


# Queries.


def test_query_parameters(client: bigquery.Client, bigquery_dataset: str) -> None:
    """Scalar and array parameters are bound."""
    load(client, f"{bigquery_dataset}.t", [{"id": i, "n": n} for n, i in enumerate("abcd")])
    config = bigquery.QueryJobConfig(
        query_parameters=[
            bigquery.ScalarQueryParameter("least", "INT64", 1),
            bigquery.ArrayQueryParameter("ids", "STRING", ["a", "b", "d"]),
        ]
    )
    sql = (
        f"SELECT id FROM `{bigquery_dataset}.t` "
        "WHERE n >= @least AND id IN UNNEST(@ids) ORDER BY id"
    )

    assert [row.id for row in client.query(sql, job_config=config)] == ["b", "d"]
    assert [row.id for row in client.query_and_wait(sql, job_config=config)] == ["b", "d"]


def test_dry_run(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A dry run accepts valid queries and raises for bad SQL, columns and tables."""
    load(client, f"{bigquery_dataset}.t", [{"id": "a"}])
    dry = bigquery.QueryJobConfig(dry_run=True)

    job = client.query(f"SELECT id FROM `{bigquery_dataset}.t`", job_config=dry)
    assert [field.name for field in job.schema or ()] == ["id"]
    with pytest.raises(exceptions.BadRequest):
        client.query("SELEC 1", job_config=dry)
    with pytest.raises(exceptions.BadRequest):
        client.query(f"SELECT other FROM `{bigquery_dataset}.t`", job_config=dry)
    with pytest.raises(exceptions.NotFound):
        client.query(f"SELECT * FROM `{bigquery_dataset}.missing`", job_config=dry)


def test_failing_query_raises_both_ways(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A failing query raises from a job's result and from jobs.query alike."""
    for error, sql in (
        (exceptions.NotFound, f"SELECT * FROM `{bigquery_dataset}.missing`"),
        (exceptions.BadRequest, "SELECT nope FROM (SELECT 1 AS one)"),
    ):
        with pytest.raises(error):
            client.query(sql).result()
        with pytest.raises(error):
            client.query_and_wait(sql)


def test_destination_table(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A query's rows go into its destination as the disposition says."""
    destination = f"{bigquery_dataset}.out"

    def write(sql: str, disposition: str) -> list[tuple[Any, ...]]:
        config = bigquery.QueryJobConfig(destination=destination, write_disposition=disposition)
        job = client.query(sql, job_config=config, job_retry=None)
        rows = [tuple(row) for row in job.result()]
        assert str(job.destination) == destination
        return rows

    assert write("SELECT 'a' AS id, 1 AS n", "WRITE_EMPTY") == [("a", 1)]
    write("SELECT 'b' AS id, 2 AS n", "WRITE_APPEND")
    assert contents(client, destination) == [("a", 1), ("b", 2)]
    with pytest.raises(exceptions.Conflict):
        write("SELECT 'c' AS id, 3 AS n", "WRITE_EMPTY")
    write("SELECT 'd' AS id, 4 AS n", "WRITE_TRUNCATE")
    assert contents(client, destination) == [("d", 4)]


def test_latest_row_view_over_json(client: bigquery.Client, bigquery_dataset: str) -> None:
    """A view keeps each record's latest row, parses its JSON, and can be replaced."""
    schema = [
        bigquery.SchemaField("record_id", "STRING"),
        bigquery.SchemaField("created_at", "TIMESTAMP"),
        bigquery.SchemaField("response", "STRING"),
    ]
    rows = [
        ("a", "2026-01-01T00:00:00Z", '{"label": "old", "score": 1}'),
        ("a", "2026-01-02T00:00:00Z", '{"label": "new", "score": 0.1234567890123456789}'),
        ("b", "2026-01-01T00:00:00Z", "not json"),
        ("c", "2026-01-01T00:00:00Z", '{"label": "c", "score": "high"}'),
    ]
    names = [field.name for field in schema]
    load(
        client,
        f"{bigquery_dataset}.raw",
        [dict(zip(names, row, strict=True)) for row in rows],
        schema=schema,
    )
    sql = f"""
        CREATE OR REPLACE VIEW `{bigquery_dataset}.latest` AS
        SELECT
          record_id,
          SAFE.PARSE_JSON(response, wide_number_mode=>'round') AS parsed,
          JSON_VALUE(SAFE.PARSE_JSON(response, wide_number_mode=>'round'), '$.label') AS label,
          SAFE_CAST(
            JSON_VALUE(SAFE.PARSE_JSON(response, wide_number_mode=>'round'), '$.score')
            AS FLOAT64) AS score
        FROM `{bigquery_dataset}.raw`
        QUALIFY ROW_NUMBER() OVER (PARTITION BY record_id ORDER BY created_at DESC) = 1
    """
    for _ in range(2):
        client.query(sql).result()

    found = client.query(
        f"SELECT record_id, label, score, parsed IS NULL AS bad "
        f"FROM `{bigquery_dataset}.latest` ORDER BY record_id"
    )
    assert [tuple(row) for row in found] == [
        ("a", "new", pytest.approx(0.1234567890123456), False),
        ("b", None, None, True),
        ("c", "c", None, False),
    ]
    assert client.get_table(f"{bigquery_dataset}.latest").table_type == "VIEW"


# Cloud Storage through Beam's file systems.


def test_objects_through_beam_filesystems(bucket: str) -> None:
    """Objects are created, listed, renamed and deleted under their exact names."""
    root = f"gs://{bucket}/folder"
    for name in ("a.txt", "b.txt", "sub/c.txt", "d.csv"):
        write_object(f"{root}/{name}", name.encode())

    def names(pattern: str) -> list[str]:
        (match,) = FileSystems.match([pattern])
        return sorted(found.path.removeprefix(f"{root}/") for found in match.metadata_list)

    assert names(f"{root}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{root}/**") == ["a.txt", "b.txt", "d.csv", "sub/c.txt"]
    assert FileSystems.exists(f"{root}/a.txt")
    assert not FileSystems.exists(f"{root}/z.txt")
    assert read_object(f"{root}/sub/c.txt") == b"sub/c.txt"

    FileSystems.rename([f"{root}/a.txt"], [f"{root}/z.txt"])
    assert names(f"{root}/*.txt") == ["b.txt", "z.txt"]
    assert read_object(f"{root}/z.txt") == b"a.txt"

    FileSystems.delete([f"{root}/b.txt"])
    assert names(f"{root}/**") == ["d.csv", "sub/c.txt", "z.txt"]


def test_gzip_object(bucket: str) -> None:
    """An object written with gzip is stored compressed and read back unchanged."""
    url, text = f"gs://{bucket}/text.gz", b"some text\n" * 1000

    with FileSystems.create(url) as file:
        file.write(text)

    assert gzip.decompress(read_object(url)) == text
    assert read_object(url, CompressionTypes.AUTO) == text


def test_large_object_in_chunks(bucket: str) -> None:
    """An object larger than an upload chunk is stored whole and can be read from the middle."""
    url, content = f"gs://{bucket}/large", bytes(range(256)) * 80_000

    write_object(url, content)

    assert read_object(url) == content
    with FileSystems.open(url, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.seek(10_000_001)
        assert file.read(300) == content[10_000_001:10_000_301]


# Beam's BigQuery reads.

TYPED_SCHEMA = [
    bigquery.SchemaField("id", "STRING", "REQUIRED"),
    bigquery.SchemaField("b", "BYTES"),
    bigquery.SchemaField("num", "NUMERIC"),
    bigquery.SchemaField("ts", "TIMESTAMP"),
    bigquery.SchemaField("day", "DATE"),
    bigquery.SchemaField("f", "FLOAT64"),
    bigquery.SchemaField("nothing", "STRING"),
    bigquery.SchemaField("tags", "STRING", "REPEATED"),
    bigquery.SchemaField(
        "rec",
        "RECORD",
        fields=[bigquery.SchemaField("k", "STRING"), bigquery.SchemaField("n", "INT64")],
    ),
]

TYPED_ROW = {
    "id": "a",
    "b": base64.b64encode(b"\x00\xff").decode(),
    "num": "1.5",
    "ts": "2026-01-02T03:04:05.678901Z",
    "day": "2026-01-02",
    "f": "NaN",
    "nothing": None,
    "tags": ["x", "y"],
    "rec": {"k": "v", "n": 7},
}


_collected: list[dict[str, Any]] = []


def collect(row: dict[str, Any]) -> None:
    """Keeps a row; the runner's workers are threads of this process."""
    _collected.append(row)


def read_with_beam(**options: Any) -> list[dict[str, Any]]:
    """Returns the rows of ReadFromBigQuery on the portable runner, by id."""
    _collected.clear()
    with beam.Pipeline(FnApiRunner(), PipelineOptions(["--project", PROJECT])) as pipeline:
        _ = pipeline | ReadFromBigQuery(**options) | beam.Map(collect)
    return sorted(_collected, key=lambda row: row["id"])


@pytest.fixture
def typed_table(client: bigquery.Client, bigquery_dataset: str) -> str:
    """A table with a row of every type and a row of NULLs."""
    table = f"{bigquery_dataset}.typed"
    load(client, table, [TYPED_ROW, {"id": "b"}], schema=TYPED_SCHEMA)
    return table


def assert_is_typed_table(rows: list[dict[str, Any]]) -> None:
    """Checks values and Python types from Beam for each BigQuery type."""
    first, second = rows
    assert math.isnan(first.pop("f"))  # FLOAT64: float, NaN stays NaN
    assert first == {
        "id": "a",  # STRING: str
        "b": b"\x00\xff",  # BYTES: bytes
        "num": Decimal("1.5"),  # NUMERIC: Decimal, with nine places
        "ts": dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),  # TIMESTAMP: aware datetime
        "day": dt.date(2026, 1, 2),  # DATE: date
        "nothing": None,  # NULL: None
        "tags": ["x", "y"],  # REPEATED: list
        "rec": {"k": "v", "n": 7},  # RECORD: dict; INT64: int
    }
    assert {name: type(value) for name, value in first.items()} == {
        "id": str,
        "b": bytes,
        "num": Decimal,
        "ts": dt.datetime,
        "day": dt.date,
        "nothing": type(None),
        "tags": list,
        "rec": dict,
    }
    nulls = ("b", "num", "ts", "day", "f", "nothing", "rec")
    assert second == {"id": "b", "tags": [], **dict.fromkeys(nulls)}


@pytest.mark.parametrize("native", [False, True], ids=["avro", "arrow"])
def test_direct_read_of_a_table(typed_table: str, native: bool) -> None:
    """Both wire formats return the same Python values."""
    assert_is_typed_table(
        read_with_beam(table=typed_table, method="DIRECT_READ", use_native_datetime=native)
    )


def test_direct_read_selects_fields_and_rows(typed_table: str) -> None:
    """The server sends only the fields and rows that the read requests."""
    rows = read_with_beam(
        table=typed_table,
        method="DIRECT_READ",
        selected_fields=["id", "num"],
        row_restriction="num > 1 AND id = 'a'",
    )

    assert rows == [{"id": "a", "num": Decimal("1.5")}]


@pytest.mark.parametrize("method", ["DIRECT_READ", "EXPORT"])
def test_read_of_a_query(
    client: bigquery.Client, typed_table: str, bucket: str, method: str
) -> None:
    """A query is read through its temporary table, and only Beam's own dataset is deleted."""
    before = {dataset.dataset_id for dataset in client.list_datasets()}
    rows = read_with_beam(
        query=f"SELECT * FROM `{typed_table}`",
        use_standard_sql=True,
        method=method,
        gcs_location=f"gs://{bucket}/export",
    )

    assert_is_typed_table(rows)
    assert {dataset.dataset_id for dataset in client.list_datasets()} == before


def test_direct_read_of_many_rows(client: bigquery.Client, bigquery_dataset: str) -> None:
    """More rows than fit into one message are all read, each once."""
    rows = [{"id": f"{number:06}", "n": number} for number in range(20_000)]
    load(client, f"{bigquery_dataset}.t", rows)

    assert read_with_beam(table=f"{bigquery_dataset}.t", method="DIRECT_READ") == rows


# Sub-processes and credentials.

READ_IN_A_SUBPROCESS = """
import sys
import apache_beam as beam
import google.auth
from apache_beam.io.gcp.bigquery import ReadFromBigQuery
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.cloud import bigquery

credentials, project = google.auth.default()
print(type(credentials).__module__, project)
print([tuple(row) for row in bigquery.Client().query(f"SELECT id, n FROM `{sys.argv[1]}`")])
with beam.Pipeline(FnApiRunner(), PipelineOptions(["--project", project])) as pipeline:
    _ = pipeline | ReadFromBigQuery(table=sys.argv[1], method="DIRECT_READ") | beam.Map(print)
"""


def test_subprocess_is_redirected(
    loopback_cloud: LoopbackCloud, client: bigquery.Client, bigquery_dataset: str
) -> None:
    """A process started with the cloud's environment reaches it with all its clients."""
    table = f"{bigquery_dataset}.t"
    load(client, table, [{"id": "a", "n": 1}])

    done = subprocess.run(
        [sys.executable, "-c", READ_IN_A_SUBPROCESS, table],
        env=loopback_cloud.subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.stdout.splitlines() == [
        f"google.auth.compute_engine.credentials {PROJECT}",
        "[('a', 1)]",
        "{'id': 'a', 'n': 1}",
    ], done.stderr


def test_redirection_ends(loopback_cloud: LoopbackCloud) -> None:
    """After the block the clients and the variables are as before."""
    from apache_beam.io.gcp.internal.clients.bigquery.bigquery_v2_client import BigqueryV2
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient

    def state() -> tuple[Any, ...]:
        initialise = vars(BigQueryReadClient.__mro__[2])["__init__"]
        return BigqueryV2.BASE_URL, initialise, dict(os.environ), socket.getdefaulttimeout()

    before = state()
    with loopback_cloud.clients_redirected():
        assert BigqueryV2.BASE_URL.startswith(loopback_cloud.environment["BIGQUERY_EMULATOR_HOST"])
    assert state() == before
