"""Checks of input files and output folders before the launch."""

import itertools
import uuid
from typing import TYPE_CHECKING

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.config import RunConfig
from pipeline.options.messages import reason
from transforms.records.errors import ConfigurationError
from transforms.sinks.staging import make_folder
from transforms.sources import files as file_source
from transforms.sources.files import FileSource

if TYPE_CHECKING:
    pass


def check_files(source: FileSource, flag: str = "--input_files") -> None:
    """The pattern matches files of a known format, and the first one can be opened."""
    try:
        found = sorted(file_source.match(source.pattern), key=lambda file: file.path)
    except Exception as error:  # each file system has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(f"{flag} {source.pattern!r}: {reason(error)}") from None
    if not found:
        raise ConfigurationError(
            f"{flag} {source.pattern!r} matches no file: check the path; quote the pattern, so "
            "that the shell does not expand it"
        )
    for file in itertools.islice(found, 10_000):
        file_source.format_of(file.path, source.format)
    first = found[0]
    if source.format == "objects":
        return
    try:
        with file_source.open_file(first.path) as opened:
            opened.read(1)
        file_source.plan_parts(first.path, first.size_in_bytes, source.format)
    except ConfigurationError:
        raise
    except Exception as error:  # each file system and format has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(
            f"{flag}: {first.path!r} cannot be read: {reason(error)}"
        ) from None


def _is_unclear(error: BaseException) -> bool:
    """Whether the workers may succeed nonetheless: forbidden, timeouts, missing credentials."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    if isinstance(error, BeamIOError):
        return any(_is_unclear(e) for e in (error.exception_details or {}).values() if e)
    return isinstance(
        error,
        (
            exceptions.Forbidden,
            exceptions.Unauthorized,
            exceptions.ServerError,
            exceptions.TooManyRequests,
            exceptions.RetryError,
            GoogleAuthError,
            TimeoutError,
            ConnectionError,
        ),
    )


def check_output_path(config: RunConfig) -> None:
    """The folder can be written, and holds no other run unless ``--write_mode`` allows it."""
    folder = config.sinks.output_path or ""
    mode = config.sinks.write_mode
    try:
        ours = [f"{folder}/{name}" for name in ("results/*", "dead_letters/*", "run*.json")]
        found = FileSystems.match(ours, [1] * len(ours))
    except Exception as error:  # each file system has errors of its own
        raise ConfigurationError(f"--output_path {folder!r}: {reason(error)}") from None
    if any(result.metadata_list for result in found) and mode in (None, "fail"):
        raise ConfigurationError(
            f"--output_path {folder!r} holds another run: set another folder, or "
            "--write_mode=append to add to it, or --write_mode=replace to replace what earlier "
            "runs wrote there"
        )
    if FileSystems.match([f"{folder}/results/{config.run_id}-*"], [1])[0].metadata_list:
        raise ConfigurationError(
            f"--run_id {config.run_id!r} has written into {folder!r} before: set another"
        )
    check_writable(folder, "--output_path")


def check_writable(folder: str, flag: str) -> None:
    """A small file can be created in the folder and deleted."""
    probe = FileSystems.join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(folder)
        with FileSystems.create(probe) as file:
            file.write(b"\n")
        FileSystems.delete([probe])
    except Exception as error:  # each file system has errors of its own
        if _is_unclear(error):
            raise
        raise ConfigurationError(
            f"{flag} {folder!r} cannot be written: {reason(error)}; set a folder that can be written"
        ) from None
