"""Model weights on a machine's disk: copies a ``gs://`` folder once, and verifies it.

Objects are copied in parts, several at a time, under a lock: other processes of the machine wait
and then find the whole copy. An interrupted copy continues with the missing parts. Each copied
object is compared with the bucket's CRC32C. A copy belongs to the generations of its objects: a
model that changes in the bucket gets a new folder, and a running server keeps the old one.
"""

import base64
import concurrent.futures
import contextlib
import fcntl
import hashlib
import importlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transforms.backends.vllm.paths import base_folder
from transforms.records.errors import BackendUnusable

PART_BYTES = 32 << 20
_PARALLEL_PARTS = 10
"""As many as the storage client keeps connections."""
_COMPLETE = ".complete"
_TRIES = 3
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot")
"""Formats that repeat the weights of a model with safetensors."""
_READ_BYTES = 16 << 20

_log = logging.getLogger(__name__)


class BlobPart(NamedTuple):
    """A range of an object's bytes.

    Attributes:
      blob: The object.
      path: The file it is copied to.
      start: The first byte.
      end: The byte after the last one.
    """

    blob: Any
    path: str
    start: int
    end: int


def local_model(model: str, folder: str | None = None) -> str:
    """The model for vLLM to load: the copy of a ``gs://`` folder, a local folder, or a hub name.

    vLLM itself loads a name on the Hugging Face hub (its cache is machine-wide as well).

    Args:
      model: A hub name, a local folder, or ``gs://bucket/folder``.
      folder: The folder below which copies go; None for that of `base_folder`.

    Raises:
      BackendUnusable: The folder cannot be read, holds no model, or does not fit on the disk.
    """
    if not model.startswith("gs://"):
        if os.path.isdir(model):
            return os.path.abspath(model)
        if model.startswith(("/", "./", "../")):
            raise BackendUnusable(
                f"there is no model in {model!r}: this machine has no such folder"
            )
        return model
    try:
        return copy_model(model, os.path.join(base_folder(folder), "weights"))
    except BackendUnusable:
        raise
    except Exception as error:  # the storage client raises many types
        raise BackendUnusable(
            f"the model {model!r} cannot be copied ({type(error).__name__}: {error}); another try "
            "continues the copy where it stopped"
        ) from error


def copy_model(uri: str, folder: str) -> str:
    """Copies a model's objects below a folder; returns the folder of the verified copy."""
    blobs = _wanted(uri)
    digest = hashlib.sha256(uri.encode())
    for name, blob in blobs.items():
        digest.update(f"\0{name}\0{blob.generation}".encode())
    target = os.path.join(folder, digest.hexdigest()[:16])
    os.makedirs(target, mode=0o700, exist_ok=True)
    with _exclusive(target):
        if not os.path.exists(os.path.join(target, _COMPLETE)):
            _copy_all(uri, blobs, target)
            with open(os.path.join(target, _COMPLETE), "w", encoding="utf-8") as marker:
                json.dump({"uri": uri, "objects": len(blobs)}, marker)
    return target


@contextlib.contextmanager
def _exclusive(target: str) -> Iterator[None]:
    with open(f"{target}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wanted(uri: str) -> dict[str, Any]:
    """A folder's objects by relative name; if it has several formats of weights, only one."""
    storage = importlib.import_module("google.cloud.storage")
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
    blobs = {
        blob.name.removeprefix(prefix): blob
        for blob in storage.Client().list_blobs(bucket, prefix=prefix)
        if not blob.name.endswith("/")
    }
    if "config.json" not in blobs:
        raise BackendUnusable(
            f"{uri!r} holds no model: there is no config.json among its {len(blobs)} objects; name "
            "the folder that holds it"
        )
    if bad := next((name for name in blobs if ".." in name.split("/")), None):
        raise BackendUnusable(f"{uri!r} holds an object with an unsafe name: {bad!r}")
    if any(name.endswith(".safetensors") for name in blobs):
        blobs = {n: b for n, b in blobs.items() if not n.endswith(_OTHER_FORMATS)}
    return blobs


def _copy_all(uri: str, blobs: dict[str, Any], target: str) -> None:
    for attempt in range(_TRIES):
        missing = {name: blob for name, blob in blobs.items() if not _is_there(target, name, blob)}
        if not missing:
            return
        size = sum(blob.size for blob in missing.values())
        partial = sum(_size_of(os.path.join(target, f"{name}.part")) for name in missing)
        free = shutil.disk_usage(target).free
        if size - partial > free:
            raise BackendUnusable(
                f"{uri!r} needs {size / 1e9:.1f} GB, but {target} has {free / 1e9:.1f} GB free: "
                "use workers with a larger disk (`disk_size_gb`)"
            )
        _log.info(
            "copying %d objects of %s, %.1f GB (attempt %d)", len(missing), uri, size / 1e9, attempt
        )
        wrong = [name for name in _copy(missing, target) if name]
        if wrong:
            _log.warning("%s arrived with a wrong checksum: copying again", ", ".join(wrong))
    if left := [name for name, blob in blobs.items() if not _is_there(target, name, blob)]:
        raise BackendUnusable(
            f"{uri!r}: {', '.join(left)} arrived with a wrong checksum {_TRIES} times"
        )


def _size_of(path: str) -> int:
    """Bytes on the disk; 0 for a missing file."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _is_there(target: str, name: str, blob: Any) -> bool:
    try:
        return bool(os.path.getsize(os.path.join(target, name)) == blob.size)
    except FileNotFoundError:
        return False


def _copy(blobs: dict[str, Any], target: str) -> list[str]:
    """Copies objects; returns the names of those that arrived with a wrong checksum."""
    with concurrent.futures.ThreadPoolExecutor(
        _PARALLEL_PARTS, thread_name_prefix="weights"
    ) as pool:
        files = {name: _File(blob, os.path.join(target, name)) for name, blob in blobs.items()}
        copied = {
            pool.submit(file.fetch, part): name
            for name, file in files.items()
            for part in file.missing()
        }
        try:
            for done in concurrent.futures.as_completed(copied):
                done.result()
        except BaseException:
            for future in copied:
                future.cancel()
            raise
        good = list(pool.map(_File.finish, files.values()))
    return [name for name, is_good in zip(files, good, strict=True) if not is_good]


class _File:
    """An object being copied: its bytes in ``NAME.part``, a line per part in ``NAME.parts``."""

    def __init__(self, blob: Any, path: str) -> None:
        self._blob = blob
        self._path = path
        self._lock = threading.Lock()
        os.makedirs(os.path.dirname(path), exist_ok=True)

    def missing(self) -> list[BlobPart]:
        """The parts not copied yet."""
        there: set[int] = set()
        if os.path.exists(f"{self._path}.parts"):
            with open(f"{self._path}.parts", encoding="utf-8") as journal:
                there = {int(line) for line in journal if line.endswith("\n")}
        with open(f"{self._path}.part", "ab") as file:
            file.truncate(self._blob.size)
        starts = range(0, self._blob.size, PART_BYTES)
        return [
            BlobPart(self._blob, self._path, start, min(start + PART_BYTES, self._blob.size))
            for start in starts
            if start not in there
        ]

    def fetch(self, part: BlobPart) -> None:
        """Copies one part and records it."""
        content: bytes = part.blob.download_as_bytes(
            start=part.start,
            end=part.end - 1,
            raw_download=True,
            if_generation_match=part.blob.generation,
            checksum=None,
        )
        if len(content) != part.end - part.start:
            raise OSError(
                f"{part.blob.name}: {len(content)} of {part.end - part.start} bytes arrived"
            )
        with open(f"{self._path}.part", "r+b") as file:
            file.seek(part.start)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with self._lock, open(f"{self._path}.parts", "a", encoding="utf-8") as journal:
            journal.write(f"{part.start}\n")

    def finish(self) -> bool:
        """Compares the checksum; renames the file if it is right, else deletes it."""
        good = self._blob.crc32c in (None, checksum(f"{self._path}.part"))
        if good:
            os.replace(f"{self._path}.part", self._path)
        else:
            os.unlink(f"{self._path}.part")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}.parts")
        return good


def checksum(path: str) -> str:
    """A file's CRC32C in Cloud Storage's form: four bytes, big-endian, in base64."""
    crc32c = importlib.import_module("google_crc32c").Checksum()
    with open(path, "rb") as file:
        while content := file.read(_READ_BYTES):
            crc32c.update(content)
    digest: bytes = crc32c.digest()
    return base64.b64encode(digest).decode()


__all__: Sequence[str] = ("BlobPart", "checksum", "copy_model", "local_model")
