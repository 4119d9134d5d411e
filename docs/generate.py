"""Writes the parts of the documentation that are derived from the code, so that they cannot drift.

``python docs/generate.py`` rewrites the marked sections of ``docs/results.md``, all of
``docs/parameters.md`` and the table schemas of ``templates/terraform``; with ``--check`` it changes
nothing and fails when something would change.
"""

import argparse
import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":  # run by path: this folder is on the path, the project's is not
    sys.path.insert(0, str(DOCS.parent))

from pipeline.options.command_line import FLAGS  # noqa: E402 - after the path is set
from pipeline.options.flag import Flag  # noqa: E402
from transforms.accounting.minute_summary import MINUTE_COLUMNS  # noqa: E402
from transforms.results.rows import (  # noqa: E402
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
)

TABLES = {
    "results": RESULT_COLUMNS,
    "dead letters": DEAD_LETTER_COLUMNS,
    "run summary": SUMMARY_COLUMNS,
    "run summary of a stream": MINUTE_COLUMNS[len(SUMMARY_COLUMNS) :],
}
SCHEMAS = DOCS.parent / "templates/terraform/schemas"
_SECTION = r"(<!-- generated: {name} -->\n).*?(<!-- end of generated -->)"

PARAMETERS = """\
# Parameters

`python docs/generate.py` generates this page from the flags in `pipeline/options/`.

Write `--name=value`. Every value is one string: booleans are `true` or `false`, commas separate the
items of a list, JSON is inline or in a file that the value names, and `''` means that the flag is
not set. Paths may be local or `gs://`. Apache Beam's own flags (`--runner`, `--project`, `--region`,
`--temp_location`, `--direct_num_workers`, …) work as well. An unknown flag is an error.
"""


def column_table(columns: tuple[Column, ...]) -> str:
    """A Markdown table of columns, nested ones by their path."""
    lines = ["| Column | Type | What it holds |", "|---|---|---|"]
    for column in columns:
        lines.append(_column_line(column, column.name))
        lines += [_column_line(child, f"{column.name}.{child.name}") for child in column.fields]
    return "\n".join(lines) + "\n"


def _column_line(column: Column, name: str) -> str:
    mode = "" if column.mode == "NULLABLE" else f" {column.mode.lower()}"
    return f"| `{name}` | {column.type}{mode} | {_cell(column.help)} |"


def parameters_page() -> str:
    """All of ``docs/parameters.md``."""
    pages = [PARAMETERS]
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        lines = [f"\n## {group}\n", "| Flag | Default | What it does |", "|---|---|---|"]
        lines += [_flag_line(flag) for flag in FLAGS if flag.group == group]
        pages.append("\n".join(lines) + "\n")
    return "".join(pages)


def _flag_line(flag: "Flag[object]") -> str:
    default = f"`{flag.default_text}`" if flag.default_text else ""
    return f"| `{flag}` {_cell(flag.values)} | {default} | {_cell(flag.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def results_page(text: str) -> str:
    """``docs/results.md`` with its marked sections regenerated.

    Raises:
      ValueError: A section's marks are missing.
    """
    for name, columns in TABLES.items():
        table = column_table(columns).replace("\\", "\\\\")
        pattern = _SECTION.format(name=re.escape(name))
        text, found = re.subn(pattern, rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"docs/results.md has {found} sections marked {name!r}, not one")
    return text


def table_schema(columns: tuple[Column, ...]) -> list[dict[str, object]]:
    """The columns as BigQuery's JSON schema."""
    return [
        {
            "name": column.name,
            "type": column.type,
            "mode": column.mode,
            **({"description": column.help} if column.help else {}),
            **({"fields": table_schema(column.fields)} if column.fields else {}),
        }
        for column in columns
    ]


def schema_files() -> dict[pathlib.Path, str]:
    """The tables that Terraform creates, one file each."""
    tables = {
        "results": RESULT_COLUMNS,
        "dead_letters": DEAD_LETTER_COLUMNS,
        "runs": MINUTE_COLUMNS,  # holds the runs of batch jobs as well
    }
    return {
        SCHEMAS / f"{name}.json": json.dumps(table_schema(columns), indent=2) + "\n"
        for name, columns in tables.items()
    }


def pages() -> dict[pathlib.Path, str]:
    """Every generated file, with its current content."""
    results = DOCS / "results.md"
    return {
        results: results_page(results.read_text(encoding="utf-8")),
        DOCS / "parameters.md": parameters_page(),
        **schema_files(),
    }


def main(argv: list[str] | None = None) -> int:
    """Writes the pages, or checks them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on drift")
    check = parser.parse_args(argv).check
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if check:
            name = path.relative_to(DOCS.parent)
            sys.stderr.write(f"{name} is out of date: run python docs/generate.py\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
