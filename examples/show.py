"""Prints a few results and the dead letters of a run's folder."""

import json
import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = 8


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of all JSON-lines files of a folder."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def table(title: str, names: list[str], lines: list[list[str]]) -> Table:
    """A table whose last column takes what room is left."""
    made = Table(title=title, title_justify="left")
    for place, name in enumerate(names[:-1]):
        width = max(len(line[place]) for line in [names, *lines])
        made.add_column(name, no_wrap=True, min_width=width)
    made.add_column(names[-1], no_wrap=True)
    for line in lines:
        made.add_row(*line[:-1], line[-1][:72])
    return made


def main() -> None:
    """Shows the folder that the command line names."""
    folder = pathlib.Path(sys.argv[1])
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console = Console(width=120)
    asked = ["category", "priority", "sentiment", "summary"]
    results = sorted(rows(folder / "results"), key=lambda row: row["record_id"])[:ROWS]
    answers = [(row["record_id"], json.loads(row["output_json"])) for row in results]
    lines = [[ticket, *(str(answer[name]) for name in asked)] for ticket, answer in answers]
    console.print(table("results (output_json)", ["ticket", *asked], lines))
    why = ["stage", "error_type", "error_message"]
    letters = sorted(rows(folder / "dead_letters"), key=lambda row: row["error_message"])
    console.print(table("dead letters", why, [[row[name] for name in why] for row in letters]))


if __name__ == "__main__":
    main()
