"""Lets DuckDB find its extensions in wheels, so that the emulator starts without a network.

The emulator runs ``INSTALL spatial`` at its start and ends if that fails. DuckDB searches
``$HOME/.duckdb`` first; the wheels ``duckdb-extension-*`` hold the same signed files that it would
download.
"""

import importlib.util
import os
from pathlib import Path

EXTENSIONS = ("spatial", "avro")


def use_bundled_extensions(home: Path) -> None:
    """Makes ``home`` this process's home folder and links the extensions below it."""
    os.environ["HOME"] = str(home)
    import duckdb

    row = duckdb.sql("PRAGMA platform").fetchone()
    version = f"v{duckdb.__version__}"
    folder = home / ".duckdb" / "extensions" / version / row[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXTENSIONS:
        spec = importlib.util.find_spec(f"duckdb_extension_{name}")
        if spec is None or spec.origin is None:
            raise RuntimeError(f"the package duckdb-extension-{name} is not installed")
        file_name = f"{name}.duckdb_extension"
        bundled = Path(spec.origin).parent / "extensions" / version / file_name
        if not bundled.exists():
            raise RuntimeError(f"duckdb-extension-{name} has no file for DuckDB {version}")
        (folder / file_name).symlink_to(bundled)
