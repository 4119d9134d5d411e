"""A model's folder is copied from Cloud Storage once, complete and verified."""

import concurrent.futures
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.emulators.google_cloud import LoopbackCloud
from transforms.backends.vllm import weights
from transforms.records.errors import BackendUnusable

PART = 1000
FILES = {
    "config.json": b"{}",
    "model-1.safetensors": bytes(range(256)) * 40,
    "model-2.safetensors": b"x" * PART,
    "pytorch_model.bin": b"the same again",
    "tokenizer/empty": b"",
}
WANTED = {name: content for name, content in FILES.items() if not name.endswith(".bin")}


@pytest.fixture
def model(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in a bucket, with small parts."""
    from google.cloud import storage

    for name, content in FILES.items():
        storage.Client().bucket(bucket).blob(f"models/m/{name}").upload_from_string(content)
    monkeypatch.setattr(weights, "PART_BYTES", PART)
    return f"gs://{bucket}/models/m"


def _there(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != ".complete"
    }


def test_a_model_is_copied_once(model: str, tmp_path: Path, counted: list[str]) -> None:
    """Processes that need a model at the same time copy it once, in one format of weights."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: weights.local_model(model, str(tmp_path)), range(4)))
    (folder,) = folders
    assert _there(folder) == WANTED
    assert len(counted) == 1 + 11 + 1  # the parts of the three objects with content


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects whose parts were downloaded."""
    from google.cloud import storage

    asked: list[str] = []
    download = storage.Blob.download_as_bytes

    def count(blob: Any, **options: Any) -> bytes:
        asked.append(blob.name)
        content: bytes = download(blob, **options)
        return content

    monkeypatch.setattr(storage.Blob, "download_as_bytes", count)
    return asked


def test_an_interrupted_copy_continues(
    model: str, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy continues with the missing parts only."""
    fetch = weights._File.fetch

    def broken(self: Any, part: weights.BlobPart) -> None:
        if part.start == 5 * PART:
            raise OSError("the line is cut")
        fetch(self, part)

    with monkeypatch.context() as patched:
        patched.setattr(weights._File, "fetch", broken)
        with pytest.raises(BackendUnusable, match=r"the line is cut.*where it stopped"):
            weights.local_model(model, str(tmp_path))
    before = len(counted)
    folder = weights.local_model(model, str(tmp_path))
    assert _there(folder) == WANTED
    assert len(counted) <= 13
    assert counted[before:].count("models/m/model-1.safetensors") >= 1


def test_a_changed_model_is_another_folder(model: str, tmp_path: Path) -> None:
    """A changed model gets another folder; a running server keeps the copy that it has loaded."""
    from google.cloud import storage

    first = weights.local_model(model, str(tmp_path))
    bucket = model.removeprefix("gs://").partition("/")[0]
    storage.Client().bucket(bucket).blob("models/m/config.json").upload_from_string(b"[]")
    second = weights.local_model(model, str(tmp_path))
    assert first != second
    assert Path(first, "config.json").read_bytes() == b"{}"
    assert Path(second, "config.json").read_bytes() == b"[]"


def test_a_folder_without_a_model(bucket: str, tmp_path: Path) -> None:
    """A folder without a model is rejected with its number of objects."""
    with pytest.raises(BackendUnusable, match=r"no config\.json among its 0 objects"):
        weights.local_model(f"gs://{bucket}/nothing", str(tmp_path))


def test_a_wrong_checksum_is_copied_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part with a wrong checksum is fetched again a few times, and never gets its final name."""
    right = weights.checksum
    wrong = iter([True])
    monkeypatch.setattr(
        weights, "checksum", lambda path: "????" if next(wrong, False) else right(path)
    )
    assert _there(weights.local_model(model, str(tmp_path / "a"))) == WANTED
    monkeypatch.setattr(weights, "checksum", lambda _: "????")
    with pytest.raises(BackendUnusable, match=r"config\.json.* wrong checksum 3 times"):
        weights.local_model(model, str(tmp_path / "b"))


def test_a_disk_that_is_too_small(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too small is rejected before the first byte."""
    monkeypatch.setattr(
        weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=10, total=0, used=0)
    )
    with pytest.raises(BackendUnusable, match="`disk_size_gb`"):
        weights.local_model(model, str(tmp_path))


def test_names_and_folders_are_not_copied(tmp_path: Path) -> None:
    """Names and local folders are not copied: the server reads the hub, and a folder must exist."""
    assert weights.local_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert weights.local_model(str(tmp_path)) == str(tmp_path)
    with pytest.raises(BackendUnusable, match="this machine has no such folder"):
        weights.local_model(os.path.join(tmp_path, "missing"))


@pytest.mark.parametrize("model", ["models/tiny", "./models/tiny", "../here/models/tiny"])
def test_a_folder_becomes_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """A folder becomes an absolute path, because the server runs in another folder."""
    (tmp_path / "here/models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert weights.local_model(model) == str(tmp_path / "here/models/tiny")


def test_copies_go_to_the_servers_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies go to the servers' folder, because the machine's temporary one may be small."""
    monkeypatch.setenv("VLLM_SERVER_FOLDER", str(tmp_path))
    assert Path(weights.local_model(model)).parent == tmp_path / "weights"


def test_the_checksum_is_cloud_storages(tmp_path: Path, loopback_cloud: LoopbackCloud) -> None:
    """The checksum is the CRC32C of its standard's check string."""
    (tmp_path / "x").write_bytes(b"123456789")
    assert weights.checksum(str(tmp_path / "x")) == "4waSgw=="
