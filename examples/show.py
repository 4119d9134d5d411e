"""Prints a few results and the dead letters of a run's folder."""

import json
import pathlib
import sys

from rich.console import Console
from rich.table import Table

ROWS = 8


def rows(folder: pathlib.Path) -> list[dict[str, object]]:
    """The rows of all JSON-lines files of a folder."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def main() -> None:
    """Shows the folder that the command line names."""
    folder = pathlib.Path(sys.argv[1])
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    results = Table(title="results (output_json)", title_justify="left")
    for name in ("ticket", "category", "priority", "sentiment", "summary"):
        results.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in sorted(rows(folder / "results"), key=lambda row: str(row["record_id"]))[:ROWS]:
        answer = json.loads(str(row["output_json"]))
        names = ("category", "priority", "sentiment", "summary")
        results.add_row(str(row["record_id"]), *(str(answer[name]) for name in names))
    console.print(results)
    letters = Table(title="dead letters", title_justify="left")
    for name in ("stage", "error_type", "error_message"):
        letters.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in sorted(rows(folder / "dead_letters"), key=lambda row: str(row["error_message"])):
        letters.add_row(*(str(row[name]) for name in ("stage", "error_type", "error_message")))
    console.print(letters)


if __name__ == "__main__":
    main()
