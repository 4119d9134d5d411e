"""The layout that the architecture promises: who imports whom, and how modules are written."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OWN = ("transforms", "pipeline", "templates", "tests", "benchmarks")
HEAVY = (
    "google.genai",
    "google.cloud",
    "vertexai",
    "sentence_transformers",
    "torch",
    "openai",
    "genai_prices",
    "transformers",
    "vllm",
)
"""Packages that take seconds or hundreds of megabytes to import."""


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules(*packages: str) -> dict[str, ast.Module]:
    return {
        _name(path): ast.parse(path.read_text("utf-8"))
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
    }


LIBRARY = _modules("transforms")
APPLICATION = _modules("pipeline")
SHIPPED = {**LIBRARY, **APPLICATION}
TEMPLATES = _modules("templates")


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a tree imports; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(tree: ast.AST) -> set[str]:
    """The project's modules that a tree imports."""
    known = {*SHIPPED, *TEMPLATES}
    return {name for name in _imported(tree) if name in known or name.partition(".")[0] in OWN} & (
        known | {"templates", "tests", "benchmarks"}
    )


def _at_the_top(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run when the module is imported: no function bodies, no TYPE_CHECKING."""
    found: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def _is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_scan_finds_modules_and_imports() -> None:
    """The scan finds the modules and imports that the rules below examine."""
    assert {
        "transforms.records.records",
        "transforms.inference.infer",
        "transforms.dispatch.loop",
    } <= set(LIBRARY)
    assert {"pipeline", "pipeline.main", "pipeline.options.command_line"} <= set(APPLICATION)
    assert "transforms.records.records" in _own_imports(LIBRARY["transforms.inference.infer"])
    assert "transforms.dispatch.loop" in _own_imports(LIBRARY["transforms.inference.infer"])


# Who may import whom

FLOORS: tuple[tuple[str, ...], ...] = (
    ("records",),
    ("results",),
    ("clients",),
    ("backends", "accounting"),
    ("dispatch", "ledger", "requests", "sources", "sinks"),
    ("inference", "jobs"),
)
"""The rooms of the library, the lowest floor first. A room imports itself and lower floors."""
ROOMS_AT_MOST = 12


def _rooms(package: str) -> set[str]:
    """The folders and modules directly inside a package."""
    return {
        path.stem
        for path in (ROOT / package).iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }


def _room(name: str) -> str:
    """The room of a module: ``records`` for ``transforms.records.coders``."""
    return name.split(".")[1] if "." in name else ""


def test_each_package_has_few_rooms() -> None:
    """No package has more rooms than a newcomer can survey in a minute."""
    known = {room for floor in FLOORS for room in floor}
    assert _rooms("transforms") <= known
    assert len(_rooms("transforms")) <= ROOMS_AT_MOST
    assert len(_rooms("pipeline")) <= ROOMS_AT_MOST


@pytest.mark.parametrize("name", [name for name in LIBRARY if _room(name)])
def test_rooms_import_from_below(name: str) -> None:
    """Each room imports only itself and lower floors, never its own floor or the package."""
    floor = next(number for number, rooms in enumerate(FLOORS) if _room(name) in rooms)
    below = {room for rooms in FLOORS[:floor] for room in rooms} | {_room(name)}
    imported = {other for other in _own_imports(LIBRARY[name]) if other in LIBRARY and _room(other)}
    assert {_room(other) for other in imported} <= below, sorted(imported)
    assert "transforms" not in {
        node.module for node in ast.walk(LIBRARY[name]) if isinstance(node, ast.ImportFrom)
    }, "a module imports from the room where a name lives"


def test_modules_have_an_order() -> None:
    """No two modules depend on each other at import time."""
    needs = {
        name: {other for node in _at_the_top(tree) for other in _own_imports(node)} - {name}
        for name, tree in SHIPPED.items()
    }
    packages = {name for name in needs if any(other.startswith(f"{name}.") for other in needs)}
    needs = {name: others - packages for name, others in needs.items() if name not in packages}
    while needs:
        free = {name for name, others in needs.items() if not others & set(needs)}
        assert free, f"these modules need each other: {sorted(needs)}"
        needs = {name: others for name, others in needs.items() if name not in free}


@pytest.mark.parametrize("name", [n for n in LIBRARY if _room(n) == "records"])
def test_records_are_plain(name: str) -> None:
    """Records, errors and media import only the standard library and the coders' own packages."""
    allowed = {"transforms", "apache_beam", "orjson", "msgspec"}
    for imported in _imported(LIBRARY[name]):
        top = imported.partition(".")[0]
        assert top in sys.stdlib_module_names or top in allowed, imported


@pytest.mark.parametrize("name", [n for n in LIBRARY if n.startswith("transforms.backends.")])
def test_a_backend_knows_no_other_backend(name: str) -> None:
    """A backend imports the protocol, clients, records and itself: no Beam, no other backend."""
    own = ".".join(name.split(".")[:3])
    for imported in _own_imports(LIBRARY[name]) - {"transforms", "transforms.backends"}:
        allowed = ("transforms.backends.base", "transforms.clients", "transforms.records", own)
        assert _is_in(imported, allowed), imported
    assert not [i for i in _imported(LIBRARY[name]) if i.partition(".")[0] == "apache_beam"]


@pytest.mark.parametrize(
    "name", [f"transforms.backends.vllm.{n}" for n in ("keeper", "guard", "child", "processes")]
)
def test_processes_of_vllm_are_plain(name: str) -> None:
    """Modules that run as their own process import only the standard library and their own room."""
    for imported in _imported(LIBRARY[name]):
        top = imported.partition(".")[0]
        assert top in sys.stdlib_module_names or imported.startswith("transforms.backends.vllm")


@pytest.mark.parametrize(
    "name", [n for n in LIBRARY if _room(n) in {"dispatch", "inference", "jobs"}]
)
def test_dispatch_knows_protocols_only(name: str) -> None:
    """``dispatch`` never imports a concrete backend."""
    backends = {i for i in _own_imports(LIBRARY[name]) if i.startswith("transforms.backends.")}
    assert backends <= {"transforms.backends.base"}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_knows_no_application(name: str) -> None:
    """``transforms`` imports nothing from the application."""
    for imported in _imported(LIBRARY[name]):
        assert not _is_in(imported, ("pipeline", "templates", "tests", "benchmarks")), imported


@pytest.mark.parametrize("name", APPLICATION)
def test_nothing_imports_templates_or_tests(name: str) -> None:
    """Neither the application nor the library imports templates or tests."""
    for imported in _imported(APPLICATION[name]):
        assert not _is_in(imported, ("templates", "tests", "benchmarks")), imported


def test_templates_know_the_entry_only() -> None:
    """A template only starts ``pipeline.main`` and lists its options."""
    for name, tree in TEMPLATES.items():
        for imported in _own_imports(tree):
            assert not _is_in(imported, ("transforms", "tests", "benchmarks")), (name, imported)


def test_flags_are_defined_in_one_place() -> None:
    """Only one module of the application and the library adds flags."""
    for name, tree in SHIPPED.items():
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("add_argument", "add_value_provider_argument")
        ]
        assert not calls or name == "pipeline.options.command_line", name


# Heavy packages


@pytest.mark.parametrize("name", SHIPPED)
def test_heavy_packages_are_imported_where_they_are_used(name: str) -> None:
    """Functions import heavy packages, or type checkers do: commands start without them."""
    for node in _at_the_top(SHIPPED[name]):
        for imported in _imported(node):
            assert not _is_in(imported, HEAVY), imported


def test_heavy_packages_are_not_loaded() -> None:
    """The command line loads no heavy package beyond those that Beam itself loads."""
    script = (
        "import sys\n"
        "import apache_beam.io.gcp.bigquery\n"
        "before = set(sys.modules)\n"
        "import transforms, pipeline.main\n"
        "assert pipeline.main.main(['--help']) == pipeline.main.main(['--version']) == 0\n"
        "print(sorted(set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = ast.literal_eval(done.stderr.strip().splitlines()[-1])
    assert {"transforms.records.records", "pipeline.build"} <= set(loaded)
    heavy = ("google.genai", "sentence_transformers", "torch", "openai", "vertexai", "vllm")
    heavy += ("google.cloud.aiplatform", "genai_prices", "transformers")
    assert [name for name in loaded if _is_in(name, heavy)] == []


# How modules are written


@pytest.mark.parametrize("name", {**SHIPPED, **TEMPLATES})
def test_modules(name: str) -> None:
    """Every module has a docstring and annotations that Beam can read."""
    tree = {**SHIPPED, **TEMPLATES}[name]
    assert ast.get_docstring(tree)
    assert "__future__.annotations" not in set(_imported(tree))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_bare_except(name: str) -> None:
    """Every ``except`` names the exceptions that it expects."""
    handlers = [n for n in ast.walk(SHIPPED[name]) if isinstance(n, ast.ExceptHandler)]
    assert all(handler.type is not None for handler in handlers)


def _transforms() -> list[tuple[str, ast.ClassDef]]:
    return [
        (name, node)
        for name, tree in SHIPPED.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("PTransform") for base in node.bases)
    ]


def test_transforms_are_dataclasses() -> None:
    """Transforms take keyword arguments and compare by identity: Beam keeps them in sets."""
    found = _transforms()
    assert {"ReadFiles", "RenderRequests", "Infer", "WriteFiles"} <= {
        node.name for _, node in found
    }
    for name, node in found:
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        assert decorators == ["dataclasses.dataclass(kw_only=True, eq=False)"], (name, node.name)
        assert ast.get_docstring(node), (name, node.name)


def test_transforms_are_called_by_verbs() -> None:
    """Transforms are named by verbs: `RenderRequests`, not ``RequestTransform``."""
    avoided = ("Transform", "Source", "Sink", "Reader", "Writer", "Manager", "Helper", "Util")
    assert [node.name for _, node in _transforms() if node.name.endswith(avoided)] == []


def test_every_package_has_its_tests_folder() -> None:
    """Every package has a folder of tests in the same place of the tests' tree."""
    for package in (*(f"transforms/{room}" for room in _rooms("transforms")), "pipeline"):
        assert (ROOT / "tests" / package / "__init__.py").exists(), package
