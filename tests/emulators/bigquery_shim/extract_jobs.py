"""Extract jobs whose files can be found: wildcards in the URI, and objects in Cloud Storage.

The emulator writes a local file; here the file then goes through the storage emulator's
upload, so that listings and readers see it. Each extract writes one file per URI.
"""

import asyncio
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ExecuteJob = Callable[[str, str, dict[str, Any], Any], Awaitable[Any]]


def extract_into_storage(stock_execute: ExecuteJob, storage_url: str) -> ExecuteJob:
    """Returns an extract job handler that also uploads the files of the emulator's own."""

    async def execute(project: str, job_id: str, config: dict[str, Any], context: Any) -> Any:
        extract = config["extract"]
        uris = extract.get("destinationUris") or [extract["destinationUri"]]
        # The service numbers the files of a wildcard with twelve digits.
        written = [uri.replace("*", "0" * 12) for uri in uris]
        root = Path(context.settings.gcs_local_root)
        for uri in written:
            (root / uri.removeprefix("gs://")).parent.mkdir(parents=True, exist_ok=True)
        job = await stock_execute(
            project, job_id, {**config, "extract": {**extract, "destinationUris": written}}, context
        )
        for uri in written:
            file = root / uri.removeprefix("gs://")
            await asyncio.to_thread(_upload, storage_url, uri, file.read_bytes())
        statistics = {"extract": {"destinationUriFileCounts": ["1"] * len(written)}}
        return job.model_copy(update={"statistics": statistics, "configuration": config})

    return execute


def _upload(storage_url: str, uri: str, content: bytes) -> None:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    query = urllib.parse.urlencode({"uploadType": "media", "name": name})
    request = urllib.request.Request(
        f"{storage_url}/upload/storage/v1/b/{bucket}/o?{query}",
        data=content,
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=60.0):
        pass
