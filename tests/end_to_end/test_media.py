"""Media from the command line to the rows: an unreadable object fails only its record."""

import json
from pathlib import Path

import pytest

from tests.emulators.model_fixtures import SimulatedModelServer
from tests.end_to_end import runs

PLACE = ("--model=gemini-2.5-flash", "--model_project=p", "--model_location=us-central1")


def _gemini(server: SimulatedModelServer) -> list[str]:
    return ["--backend=gemini", f"--endpoint={server.base_url}", *PLACE]


def test_one_forbidden_object_among_a_thousand(
    tmp_path: Path, model_server: SimulatedModelServer
) -> None:
    """One unreadable object gives 999 results and one `forbidden` dead letter."""
    model_server.reset()
    names = [f"photo-{number}" for number in range(1_000)]
    names[500] = "forbidden"
    lines = (json.dumps({"id": n, "photo": f"gs://shop/{n}.webp"}) + "\n" for n in names)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(lines))

    code = runs.run(
        f"--input_files={source}",
        "--prompt=What is {{ id }}?",
        "--media_fields=photo",
        f"--output_path={tmp_path}/out",
        *_gemini(model_server),
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    runs.check_summary(held)
    assert {row["record_id"]: row["output"] for row in held.results} == {
        name: f"answer to What is {name}?" for name in names if name != "forbidden"
    }
    (letter,) = held.letters
    assert (letter["record_id"], letter["error_type"], letter["stage"], letter["attempts"]) == (
        "forbidden",
        "forbidden",
        "infer",
        1,
    )
    seen = model_server.requests()[-1]["body"]["contents"][0]["parts"]
    name = seen[1]["text"].removeprefix("What is ").removesuffix("?")
    assert seen[0] == {"fileData": {"fileUri": f"gs://shop/{name}.webp", "mimeType": "image/webp"}}


def test_whole_objects(bucket: str, tmp_path: Path, model_server: SimulatedModelServer) -> None:
    """Each file of a bucket is a request; unknown types and unreadable files are dead letters."""
    model_server.reset()
    uris = [f"gs://{bucket}/in/{name}" for name in ("a.png", "b.pdf", "forbidden.mp4", "odd")]
    for uri in uris:
        runs.write_object(uri, b"\0")

    code = runs.run(
        f"--input_files=gs://{bucket}/in/*",
        "--input_format=objects",
        "--id_field=uri",
        "--prompt=Describe it.",
        "--service_tier=flex",
        f"--output_path={tmp_path}/out",
        *_gemini(model_server),
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    runs.check_summary(held)
    assert sorted(row["record_id"] for row in held.results) == uris[:2]
    for row in held.results:
        assert (row["output"], row["service_tier"]) == ("answer to Describe it.", "ON_DEMAND_FLEX")
        assert row["cost_usd"] == "0.000011700"  # half of 3 × 0.30 and 9 × 2.50 per million
    assert sorted((row["record_id"], row["stage"], row["error_type"]) for row in held.letters) == [
        (uris[2], "infer", "forbidden"),
        (uris[3], "render", "invalid_request"),
    ]
    (odd,) = [row for row in held.letters if row["record_id"] == uris[3]]
    assert odd["error_message"] == (
        f"field 'uri': the MIME type of '{uris[3]}' cannot be told from its name; name it "
        "in `media_fields`: uri:image/jpeg"
    )
    parts = [seen["body"]["contents"][0]["parts"][0] for seen in model_server.requests()]
    assert sorted((p["fileData"]["fileUri"], p["fileData"]["mimeType"]) for p in parts) == [
        (uris[0], "image/png"),
        (uris[1], "application/pdf"),
        (uris[2], "video/mp4"),
    ]


def test_gs_objects_and_an_openai_server(
    tmp_path: Path, model_server: SimulatedModelServer
) -> None:
    """A record with an https URL gets an answer; one with a gs:// URL never leaves the worker."""
    source = tmp_path / "in.jsonl"
    uris = {"web": "https://h/a.png", "bucket": "gs://b/a.png"}
    source.write_text("".join(json.dumps({"id": n, "photo": u}) + "\n" for n, u in uris.items()))

    code = runs.run(
        f"--input_files={source}",
        "--prompt=What is this?",
        "--media_fields=photo",
        "--backend=openai",
        "--model=m",
        f"--endpoint={model_server.openai_url}",
        f"--output_path={tmp_path}/out",
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    assert [row["record_id"] for row in held.results] == ["web"]
    assert [(row["record_id"], row["error_type"]) for row in held.letters] == [
        ("bucket", "invalid_request")
    ]


def test_preview_shows_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The preview shows media and prompt as sent, and its estimate includes both."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"photo": "gs://b/a.png"}\n{"photo": null}\n')

    code = runs.run(
        f"--input_files={source}",
        "--prompt=What is this?",
        "--media_fields=photo",
        "--backend=fake",
        "--preview=2",
    )

    assert code == 0
    out = capsys.readouterr().out
    assert '"uri": "gs://b/a.png",' in out
    assert '"mime_type": "image/png"' in out
    assert '"text": "What is this?"' in out
    assert "render: missing_field: field 'photo' is NULL" in out
    assert "1 requests, 1 dead letters; about 278 input tokens" in out
