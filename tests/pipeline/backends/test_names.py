"""Only an adapter knows its backend; other modules ask for capabilities, never for a name."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

from pipeline.backends import BUILT_IN

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAMES = {adapter.name for adapter in BUILT_IN}
ADAPTERS = {f"pipeline/backends/{name}.py" for name in NAMES}
CONCRETE = tuple(f"transforms.backends.{name}" for name in NAMES)
MAY_IMPORT = {*ADAPTERS, "transforms/__init__.py"}
MODULES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8"))
    for package in ("pipeline", "templates", "transforms")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def names_compared(tree: ast.AST) -> Iterator[str]:
    """The names of backends in comparisons, in match cases and in tuples of ``in``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            yield from (
                part.value
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and part.value in NAMES
            )


def types_asked(tree: ast.AST) -> Iterator[str]:
    """The classes of backends in ``isinstance`` and ``issubclass`` calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            for part in ast.walk(node.args[1]):
                name = ast.unparse(part).rpartition(".")[2] if isinstance(part, ast.expr) else ""
                if name.endswith("Backend") and name != "CapableBackend":  # a protocol
                    yield name


def concrete_imports(tree: ast.AST) -> Iterator[str]:
    """The modules of concrete backends that a tree imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or "", *(f"{node.module}.{each.name}" for each in node.names)]
        else:
            continue
        yield from (
            name
            for name in found
            if any(name == module or name.startswith(f"{module}.") for module in CONCRETE)
        )


def test_each_scan_finds_its_target() -> None:
    """Each rule finds the code that it forbids, and every backend has its adapter's file."""
    assert ADAPTERS | {"templates/form.py", "transforms/__init__.py"} <= set(MODULES)
    code = (
        "import transforms.backends.vllm.launch\n"
        "def f(backend):\n"
        "    from transforms.backends import gemini\n"
        "    if backend.family in ('vllm', 'other') or backend.family != 'fake':\n"
        "        return isinstance(backend, (base.OpenAIBackend, str))\n"
    )
    tree = ast.parse(code)
    assert sorted(names_compared(tree)) == ["fake", "vllm"]
    assert list(types_asked(tree)) == ["OpenAIBackend"]
    assert list(concrete_imports(tree)) == [
        "transforms.backends.vllm.launch",
        "transforms.backends.gemini",
    ]


@pytest.mark.parametrize("path", sorted(set(MODULES) - ADAPTERS))
def test_no_module_compares_names_of_backends(path: str) -> None:
    """No module compares backends' names or asks for their classes."""
    assert list(names_compared(MODULES[path])) == []
    assert list(types_asked(MODULES[path])) == []


@pytest.mark.parametrize("path", sorted(set(MODULES) - MAY_IMPORT))
def test_no_module_imports_a_concrete_backend(path: str) -> None:
    """Only adapters, public names and backends of one dialect import concrete backends."""
    if not path.startswith("transforms/backends/"):
        assert list(concrete_imports(MODULES[path])) == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_adapter_knows_its_own_backend_only(name: str) -> None:
    """An adapter knows only its own backend; adapters share code in `pipeline.backends.shared`."""
    for imported in concrete_imports(MODULES[f"pipeline/backends/{name}.py"]):
        assert f"{imported}.".startswith(f"transforms.backends.{name}.")
