"""Runs gcp-storage-emulator 2026.7.19 for tests, and closes the gaps that clients run into.

Run by the servers' interpreter: ``python -m tests.emulators.storage_server FOLDER``. Object
``gs://b/o`` is the file ``FOLDER/objects/b/o``, which is where the BigQuery server reads it.

Closed here: one thread per request (the stock server is single-threaded); generation preconditions
(stock: ignored) answer 412; multipart bodies whose boundary is in single quotes (Beam's apitools);
suffix ranges, and 416 for a range past the end.

Limits: no permissions; a listing ignores ``maxResults`` and is one page; no
object versions; no eventual or rate limits; objects ``d`` and ``d/e`` cannot both exist (400).
"""

import argparse
import importlib.metadata
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.emulators.owner_link import OwnerLink

PATCHED_VERSION = "2026.7.19"
OBJECTS_FOLDER = "objects"

Handler = Callable[..., None]


def answer_error(response: Any, status: HTTPStatus, reason: str, message: str) -> None:
    """Fills ``response`` with an error in the service's form."""
    response.status = status
    error = {"reason": reason, "message": message}
    response.json({"error": {"code": int(status), "message": message, "errors": [error]}})


def written_object(request: Any) -> tuple[str, str]:
    """Returns the bucket and name of the object that a request writes or deletes."""
    parameters = request.params
    if "dest_object_id" in parameters:
        return parameters["dest_bucket_name"], parameters["dest_object_id"]
    if "object_id" in parameters:
        return parameters["bucket_name"], parameters["object_id"]
    name = request.query.get("name", [None])[0]
    if name is None and isinstance(request.data, dict):
        name = request.data.get("meta", request.data).get("name")
    return parameters["bucket_name"], name


def generation_of(storage: Any, bucket: str, name: str) -> int:
    """Returns the object's generation; 0 when there is no such object."""
    return int(storage.objects.get(bucket, {}).get(name, {}).get("generation", 0))


def preconditions_hold(request: Any, storage: Any) -> bool:
    """Whether the object's generation satisfies the request's preconditions."""
    wanted = request.query.get("ifGenerationMatch")
    unwanted = request.query.get("ifGenerationNotMatch")
    if not (wanted or unwanted) or "upload_id" in request.query:
        return True
    generation = generation_of(storage, *written_object(request))
    return not (
        (wanted and int(wanted[0]) != generation) or (unwanted and int(unwanted[0]) == generation)
    )


def guarded(handler: Handler, lock: threading.RLock, *, checks_generation: bool) -> Handler:
    """Returns ``handler`` run one at a time, with preconditions and disk errors answered."""

    def handle(request: Any, response: Any, storage: Any, *rest: Any, **options: Any) -> None:
        _ = request.data  # Read from the client before the lock is taken.
        with lock:
            if checks_generation and not preconditions_hold(request, storage):
                message = "At least one of the pre-conditions you specified did not hold."
                answer_error(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet", message)
                return
            try:
                handler(request, response, storage, *rest, **options)
            except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
                message = f"emulator: the name collides with a prefix on disk: {error}"
                answer_error(response, HTTPStatus.BAD_REQUEST, "invalid", message)

    return handle


def with_ranges(download: Handler) -> Handler:
    """Returns ``download`` with suffix ranges, and 416 for a range past the end."""

    def handle(request: Any, response: Any, storage: Any, *rest: Any, **options: Any) -> None:
        wanted = request.get_header("range") or ""
        bucket, name = request.params["bucket_name"], request.params["object_id"]
        if wanted and generation_of(storage, bucket, name):
            size = len(storage.get_file(bucket, name))
            suffix = re.fullmatch(r"\s*bytes=-(\d+)", wanted)
            start = re.fullmatch(r"\s*bytes=(\d+)-\d*", wanted)
            if start and int(start[1]) >= size:
                status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                answer_error(response, status, "requestedRangeNotSatisfiable", wanted)
                return
            if suffix:
                first = max(0, size - int(suffix[1]))
                headers = request._request_handler.headers
                headers.replace_header("range", f"bytes={first}-")
        download(request, response, storage, *rest, **options)

    return handle


def with_double_quoted_boundary(read_data: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a ``read_data`` that also understands ``boundary='…'``."""

    def read(request_handler: Any, query: Any) -> Any:
        headers = request_handler.headers
        content_type = headers.get("Content-Type") or ""
        if content_type.startswith("multipart/") and "boundary='" in content_type:
            quoted = re.sub(r"boundary='([^']*)'", r'boundary="\1"', content_type)
            headers.replace_header("Content-Type", quoted)
        return read_data(request_handler, query)

    return read


def patch_emulator() -> None:
    """Applies the fixes to the installed emulator, if it has the right version."""
    version = importlib.metadata.version("gcp-storage-emulator")
    if version != PATCHED_VERSION:
        raise RuntimeError(f"gcp-storage-emulator {version} is not {PATCHED_VERSION}")
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.storage import Storage

    lock = threading.RLock()
    stock_download = objects.download
    objects.download = with_ranges(stock_download)  # objects.get looks it up by this name
    writers = {
        objects.insert,
        objects.upload_partial,
        objects.copy,
        objects.rewrite,
        objects.compose,
        objects.delete,
        objects.patch,
    }
    server.HANDLERS = tuple(
        (
            pattern,
            {
                method: guarded(
                    objects.download if handler is stock_download else handler,
                    lock,
                    checks_generation=handler in writers,
                )
                for method, handler in methods.items()
            },
        )
        for pattern, methods in server.HANDLERS
    )
    server._read_data = with_double_quoted_boundary(server._read_data)
    # The stock server rewrites the metadata of every object at each change, which nothing reads.
    Storage._write_config_to_file = lambda self: None


class StorageHttpServer(ThreadingHTTPServer):
    """A threading server with room for the connections of a parallel pipeline."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serves until the owner ends."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the objects are kept")
    folder: Path = parser.parse_args().folder
    link = OwnerLink()
    link.end_with_owner()
    os.environ["STORAGE_DIR"] = OBJECTS_FOLDER  # Read when the emulator is imported.
    patch_emulator()
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    storage = Storage(use_memory_fs=False, data_dir=str(folder))
    with StorageHttpServer(("127.0.0.1", 0), partial(RequestHandler, storage)) as server:
        link.announce(rest=f"127.0.0.1:{server.server_address[1]}")
        server.serve_forever()


if __name__ == "__main__":
    main()
