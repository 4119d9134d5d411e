"""Files as a sink: ``<folder>/<run_id>-00000-of-00007.jsonl``, visible only when all are there."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from transforms.errors import RunError
from transforms.rows import Column
from transforms.sinks.staging import (
    SinkReport,
    StagedFile,
    StageRows,
    delete_folder,
    make_folder,
)

_OURS = re.compile(r"[^/]+-\d{5,}-of-\d{5,}\.(jsonl|parquet)")
"""The names that `finish_files` gives: ``replace`` deletes nothing else."""


def temporary_folder(folder: str, run_id: str) -> str:
    """Where a run stages its files: beside the final ones, so that a rename is enough."""
    return str(FileSystems.join(folder, f".{run_id}.tmp"))


def finish_files(
    staged: Sequence[StagedFile], folder: str, run_id: str, format: str, replace: bool
) -> int:
    """Gives staged files their final names; returns the rows that the final files hold.

    Idempotent: what an earlier attempt has renamed is recognised by its size.

    Args:
      staged: What to finish.
      folder: Where the final files go.
      run_id: Their prefix.
      format: Their suffix.
      replace: Delete the files of other runs afterwards.

    Raises:
      RunError: A final file does not hold what was written.
    """
    make_folder(folder)
    files = sorted(staged, key=lambda file: file.path)
    final = [
        FileSystems.join(folder, f"{run_id}-{n:05d}-of-{len(files):05d}.{format}")
        for n in range(len(files))
    ]
    pending = [
        (file, path)
        for file, path in zip(files, final, strict=True)
        if _size(file.path) is not None
    ]
    if pending:
        FileSystems.rename([file.path for file, _ in pending], [path for _, path in pending])
    for file, path in zip(files, final, strict=True):
        size = _size(path)
        if size != file.size_bytes:
            raise RunError(
                f"{path} holds {size or 0} bytes, but {file.size_bytes} were written: "
                "something else writes into this folder"
            )
    if replace:
        found = {file.path for file in FileSystems.match([f"{folder}/*"])[0].metadata_list}
        stale = [path for path in found - set(final) if _OURS.fullmatch(path.rpartition("/")[2])]
        if stale:
            FileSystems.delete(stale)
    delete_folder(temporary_folder(folder, run_id))
    return sum(file.rows for file in files)


def _size(path: str) -> int | None:
    found = FileSystems.match([path])[0].metadata_list
    return found[0].size_in_bytes if found else None


class _FinishDoFn(beam.DoFn):
    def __init__(self, sink: "WriteFiles") -> None:
        self._kind, self._folder, self._run_id = sink.kind, sink.folder, sink.run_id
        self._format, self._replace = sink.format, sink.replace

    def process(self, _: None, staged: list[StagedFile]) -> Iterator[SinkReport]:
        rows = finish_files(staged, self._folder, self._run_id, self._format, self._replace)
        yield SinkReport(self._kind, "files", self._folder, rows)


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteFiles(beam.PTransform):
    """Writes encoded rows to files; bounded, one row each, exactly once.

    Files appear under their final names when every row has been staged; a failed run leaves a
    hidden folder at most.

    Args:
      folder: Local or ``gs://``.
      run_id: The files' prefix.
      columns: What the rows hold.
      kind: ``results``, ``dead_letters`` or ``runs``, for the report.
      format: ``jsonl`` or ``parquet``.
      replace: Delete the files of other runs when the new ones are there.

    Returns:
      A PCollection of one `SinkReport`.
    """

    folder: str
    run_id: str
    columns: tuple[Column, ...]
    kind: str = "results"
    format: str = "jsonl"
    replace: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[bytes]) -> beam.PCollection[SinkReport]:
        staged = rows | StageRows(
            folder=temporary_folder(self.folder, self.run_id),
            format=self.format,
            columns=self.columns,
        )
        return (
            rows.pipeline
            | "Once" >> beam.Create([None])
            | "FinishFiles" >> beam.ParDo(_FinishDoFn(self), beam.pvalue.AsList(staged))
        )
