"""Points a sub-process's BigQuery clients at the emulator; Python imports it at start-up.

Active with this folder on ``PYTHONPATH`` and the emulators' variables set. The clients are
changed as their modules load, so a process that never uses BigQuery imports nothing.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from emulated_clients import POINT_CLIENT

VARIABLES = ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST")


class PointClientsOnImport(importlib.abc.MetaPathFinder):
    """Finds the modules of the clients and changes the clients once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the module's own spec with a loader that also changes the client."""
        point_client = POINT_CLIENT.pop(fullname, None)
        if point_client is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_point(module: ModuleType) -> None:
            load(module)
            point_client(module)

        spec.loader.exec_module = load_and_point  # type: ignore[method-assign]
        return spec


if all(os.environ.get(name) for name in VARIABLES):
    sys.meta_path.insert(0, PointClientsOnImport())
