"""Files as a sink, staged in a hidden folder and then renamed.

Bounded input: all files are renamed at the end, to ``<folder>/<run_id>-00000-of-00007.jsonl``, so
they are visible only when every row is there. Unbounded input: each file is renamed as soon as it
is staged, to ``<folder>/<run_id>-stream-<32 hex digits>.jsonl``, so every row that the runner
considers done is there even if the run fails later.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import RunError
from transforms.results.rows import Column
from transforms.sinks.base import EncodedRow, NeverRejected, Written
from transforms.sinks.staging import StagedFile, StageRows, delete_folder, make_folder

_OURS = re.compile(r"([^/]+)-(?:\d{5,}-of-\d{5,}|stream-[0-9a-f]{32})\.(?:jsonl|parquet)")
"""File names of `finish_files` and `publish_file`, and the run in them; ``replace`` deletes no
others."""


def temporary_folder(folder: str, run_id: str) -> str:
    """Where a run stages its files: next to the final ones, so that a rename is enough."""
    return str(FileSystems.join(folder, f".{run_id}.tmp"))


def finish_files(
    staged: Sequence[StagedFile], folder: str, run_id: str, format: str, replace: bool
) -> int:
    """Renames staged files to their final names; returns the number of rows in the final files.

    Idempotent: a file that an earlier attempt has renamed is recognised by its size.

    Args:
      staged: The files to rename.
      folder: Where the final files go.
      run_id: Their prefix.
      format: Their suffix.
      replace: Delete the files of other runs afterwards.

    Raises:
      RunError: A final file is not the one that was written.
    """
    make_folder(folder)
    files = sorted(staged, key=lambda file: file.path)
    final = [
        FileSystems.join(folder, f"{run_id}-{n:05d}-of-{len(files):05d}.{format}")
        for n in range(len(files))
    ]
    _rename(list(zip(files, final, strict=True)))
    if replace:
        _delete(_ours(folder).keys() - set(final))
    delete_folder(temporary_folder(folder, run_id))
    return sum(file.rows for file in files)


def publish_file(staged: StagedFile, folder: str, run_id: str) -> StagedFile:
    """Renames one staged file of a stream to its final name, and returns it; idempotent.

    Raises:
      RunError: The final file is not the one that was written.
    """
    name = staged.path.rpartition("/")[2]
    path = FileSystems.join(folder, f"{run_id}-stream-{name}")
    _rename([(staged, path)])
    return dataclasses.replace(staged, path=path)


def end_stream(published: Sequence[StagedFile], folder: str, run_id: str, replace: bool) -> int:
    """Ends a stream of published files; returns the number of rows that were published.

    The count is of the files as they got their names; somebody may have moved them since.
    Idempotent.

    Args:
      published: The files that `publish_file` has returned.
      folder: Where they are.
      run_id: Their prefix: no file of this run is deleted, listed above or not.
      replace: Delete the files of other runs.
    """
    make_folder(folder)
    if replace:
        _delete(path for path, writer in _ours(folder).items() if writer != run_id)
    delete_folder(temporary_folder(folder, run_id))
    return sum(file.rows for file in published)


def _rename(named: Sequence[tuple[StagedFile, str]]) -> None:
    """Renames the files that an earlier attempt has not renamed, and checks all sizes."""
    pending = [(file, path) for file, path in named if _size(file.path) is not None]
    if pending:
        FileSystems.rename([file.path for file, _ in pending], [path for _, path in pending])
    for file, path in named:
        size = _size(path)
        if size != file.size_bytes:
            raise RunError(
                f"{path} holds {size or 0} bytes, but {file.size_bytes} were written: "
                "something else writes into this folder"
            )


def _ours(folder: str) -> dict[str, str]:
    """The final files in a folder, each with the id of the run that wrote it."""
    paths = [file.path for file in FileSystems.match([f"{folder}/*"])[0].metadata_list]
    named = ((path, _OURS.fullmatch(path.rpartition("/")[2])) for path in paths)
    return {path: match[1] for path, match in named if match}


def _delete(paths: Iterable[str]) -> None:
    if found := list(paths):
        FileSystems.delete(found)


def _size(path: str) -> int | None:
    found = FileSystems.match([path])[0].metadata_list
    return found[0].size_in_bytes if found else None


class _PublishDoFn(beam.DoFn):
    def __init__(self, sink: "WriteFiles") -> None:
        self._folder, self._run_id = sink.folder, sink.run_id

    def process(self, staged: StagedFile) -> Iterator[StagedFile]:
        yield publish_file(staged, self._folder, self._run_id)


class _EndStreamDoFn(beam.DoFn):
    def __init__(self, sink: "WriteFiles") -> None:
        self._kind, self._folder, self._run_id = sink.kind, sink.folder, sink.run_id
        self._replace = sink.replace

    def process(self, _: None, published: list[StagedFile]) -> Iterator[SinkReport | NeverRejected]:
        rows = end_stream(published, self._folder, self._run_id, self._replace)
        yield SinkReport(self._kind, "files", self._folder, rows)


class _FinishDoFn(beam.DoFn):
    def __init__(self, sink: "WriteFiles") -> None:
        self._kind, self._folder, self._run_id = sink.kind, sink.folder, sink.run_id
        self._format, self._replace = sink.format, sink.replace

    def process(self, _: None, staged: list[StagedFile]) -> Iterator[SinkReport | NeverRejected]:
        rows = finish_files(staged, self._folder, self._run_id, self._format, self._replace)
        yield SinkReport(self._kind, "files", self._folder, rows)


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteFiles(beam.PTransform):
    """Writes encoded rows to files; bounded: exactly once, unbounded: at least once; a `Sink`.

    Bounded rows: files appear under their final names when every row has been staged; a failed run
    leaves at most a hidden folder.

    Unbounded rows: each bundle's files appear when the bundle ends, as small and as many as the
    bundles are. They stay when the run fails or is killed, and a bundle that Beam repeats leaves its
    rows twice.

    Args:
      folder: Local or ``gs://``.
      run_id: The files' prefix.
      columns: The rows' columns.
      kind: ``results``, ``dead_letters`` or ``runs``, for the report.
      format: ``jsonl`` or ``parquet``.
      replace: Delete the files of other runs when the input has ended and the new files are there.

    Returns:
      `Written`: nothing is rejected; its one report, when the input has ended, counts the rows of
      the final files.
    """

    folder: str
    run_id: str
    columns: tuple[Column, ...]
    kind: str = "results"
    format: str = "jsonl"
    replace: bool = False

    can_reject: ClassVar[bool] = False
    whole_payloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written:
        staged = rows | StageRows(
            folder=temporary_folder(self.folder, self.run_id),
            format=self.format,
            columns=self.columns,
        )
        last: beam.DoFn = _FinishDoFn(self)
        if not rows.is_bounded:
            staged |= "PublishFiles" >> beam.ParDo(_PublishDoFn(self)).with_output_types(StagedFile)
            last = _EndStreamDoFn(self)
        once = rows.pipeline | "Once" >> beam.Create([None])
        ended = once | "FinishFiles" >> beam.ParDo(last, beam.pvalue.AsList(staged)).with_outputs(
            "rejected", main="reports"
        )
        return Written(rows, ended.rejected, ended.reports)
