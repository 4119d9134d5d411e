"""The layout that the architecture promises: who imports whom, and how modules are made."""

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
"""What takes seconds or hundreds of megabytes to import."""
BACKEND_HELPERS = {
    "transforms.clients.http",
    "transforms.clients.google_auth",
    "transforms.clients.endpoints",
    "transforms.clients.secrets",
}


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
    """What runs when the module is imported: no functions' bodies, no TYPE_CHECKING."""
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


def test_the_scan_sees_something() -> None:
    """A rule that looks at nothing keeps nothing."""
    assert {
        "transforms.records.records",
        "transforms.inference.infer",
        "transforms.dispatch.loop",
    } <= set(LIBRARY)
    assert {"pipeline", "pipeline.main", "pipeline.options.command_line"} <= set(APPLICATION)
    assert "transforms.records.records" in _own_imports(LIBRARY["transforms.inference.infer"])
    assert "transforms.dispatch.loop" in _own_imports(LIBRARY["transforms.inference.infer"])


# Who may import whom


@pytest.mark.parametrize(
    "name",
    ["transforms.records.records", "transforms.records.errors", "transforms.records.causes"],
)
def test_records_and_errors_are_plain(name: str) -> None:
    """The standard library, and each other."""
    for imported in _imported(LIBRARY[name]):
        top = imported.partition(".")[0]
        plain = ("transforms.records.causes", "transforms.records.errors")
        assert top in sys.stdlib_module_names or imported.startswith(plain), imported


def test_media_are_plain() -> None:
    """Both rendering and backends use them: records, errors and the standard library only."""
    media = LIBRARY["transforms.records.media"]
    assert _own_imports(media) == {"transforms.records.errors", "transforms.records.records"}
    for imported in _imported(media):
        top = imported.partition(".")[0]
        assert top in sys.stdlib_module_names or top == "transforms", imported


def test_the_protocol_of_backends_is_plain() -> None:
    """``backends/base`` knows records and errors only."""
    base = LIBRARY["transforms.backends.base"]
    assert _own_imports(base) == {"transforms.records.errors", "transforms.records.records"}
    for imported in _imported(base):
        top = imported.partition(".")[0]
        assert top in sys.stdlib_module_names or top == "transforms", imported


@pytest.mark.parametrize("name", [n for n in LIBRARY if n.startswith("transforms.backends.")])
def test_backends_know_the_protocol_and_no_pipeline(name: str) -> None:
    """Records, errors, JSON, media and what backends share: no Beam, dispatch or other backend.

    vLLM speaks OpenAI's dialect, to a server of its own; somebody else's has the same metrics.
    """
    shared = {
        "transforms",
        "transforms.backends",
        "transforms.records.json_values",
        "transforms.records.media",
    }
    shared |= {
        "transforms.backends.base",
        "transforms.records.records",
        "transforms.records.causes",
        "transforms.records.errors",
    }
    if name == "transforms.backends.vllm.backend":
        shared |= {"transforms.backends.openai"}
        shared |= {n for n in LIBRARY if n.startswith("transforms.backends.vllm")}
    if name == "transforms.clients.endpoints":
        shared |= {"transforms.backends.vllm", "transforms.clients.server_metrics"}
    assert _own_imports(LIBRARY[name]) <= shared | BACKEND_HELPERS
    assert not [i for i in _imported(LIBRARY[name]) if i.partition(".")[0] == "apache_beam"]


@pytest.mark.parametrize("name", [n for n in LIBRARY if n.startswith("transforms.backends.vllm")])
def test_the_supervisor_of_vllm_is_plain(name: str) -> None:
    """Errors and itself: no Beam; what runs as a process of its own, not even the errors."""
    own = {i for i in _own_imports(LIBRARY[name]) if not i.startswith("transforms.backends.vllm")}
    assert own <= {"transforms", "transforms.records.errors"}
    assert not [i for i in _imported(LIBRARY[name]) if i.partition(".")[0] == "apache_beam"]
    if name.rpartition(".")[2] in ("keeper", "guard", "child", "processes", "wire"):
        for imported in _imported(LIBRARY[name]):
            top = imported.partition(".")[0]
            assert top in sys.stdlib_module_names or imported.startswith("transforms.backends.vllm")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in LIBRARY
        if n == "transforms.inference.infer" or n.startswith("transforms.dispatch")
    ],
)
def test_dispatch_knows_protocols_only(name: str) -> None:
    """Never a concrete backend."""
    backends = {i for i in _own_imports(LIBRARY[name]) if i.startswith("transforms.backends.")}
    assert backends <= {"transforms.backends.base"}


@pytest.mark.parametrize(
    "name", [n for n in LIBRARY if n.startswith(("transforms.sources", "transforms.sinks"))]
)
def test_sources_and_sinks_know_no_backends(name: str) -> None:
    """Nor what calls them."""
    for imported in _own_imports(LIBRARY[name]):
        assert not _is_in(
            imported, ("transforms.backends", "transforms.dispatch", "transforms.inference.infer")
        )


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_knows_no_application(name: str) -> None:
    """``transforms`` is usable alone."""
    for imported in _imported(LIBRARY[name]):
        assert not _is_in(imported, ("pipeline", "templates", "tests", "benchmarks")), imported


@pytest.mark.parametrize("name", APPLICATION)
def test_nothing_imports_templates_or_tests(name: str) -> None:
    """The application is usable without them."""
    for imported in _imported(APPLICATION[name]):
        assert not _is_in(imported, ("templates", "tests", "benchmarks")), imported


def test_templates_know_the_entry_only() -> None:
    """A template is a way to start ``pipeline.main``, and a list of its options."""
    for name, tree in TEMPLATES.items():
        for imported in _own_imports(tree):
            assert not _is_in(imported, ("transforms", "tests", "benchmarks")), (name, imported)


def test_flags_are_defined_in_one_place() -> None:
    """No other module of the application or the library adds a flag."""
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
    """Inside functions, or for type checkers: the command line starts without them."""
    for node in _at_the_top(SHIPPED[name]):
        for imported in _imported(node):
            assert not _is_in(imported, HEAVY), imported


def test_heavy_packages_are_not_loaded() -> None:
    """Beyond what Beam itself loads: its own BigQuery client."""
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


# How modules are made


@pytest.mark.parametrize("name", {**SHIPPED, **TEMPLATES})
def test_modules(name: str) -> None:
    """A docstring, fewer than 400 lines, and annotations that Beam can read."""
    tree = {**SHIPPED, **TEMPLATES}[name]
    path = ROOT / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert ast.get_docstring(tree)
    assert len(path.read_text("utf-8").splitlines()) < 400
    assert "__future__.annotations" not in set(_imported(tree))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_bare_except(name: str) -> None:
    """An ``except`` says what it expects."""
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
    """By keyword, and compared by identity: Beam keeps them in sets."""
    found = _transforms()
    assert {"ReadFiles", "RenderRequests", "Infer", "WriteFiles"} <= {
        node.name for _, node in found
    }
    for name, node in found:
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        assert decorators == ["dataclasses.dataclass(kw_only=True, eq=False)"], (name, node.name)
        assert ast.get_docstring(node), (name, node.name)


def test_transforms_are_called_by_verbs() -> None:
    """`RenderRequests`, not ``RequestTransform``: the house style's words to avoid."""
    avoided = ("Transform", "Source", "Sink", "Reader", "Writer", "Manager", "Helper", "Util")
    assert [node.name for _, node in _transforms() if node.name.endswith(avoided)] == []


def test_every_package_has_its_tests_folder() -> None:
    """The tests mirror the tree."""
    for package in ("transforms/sources", "transforms/sinks", "transforms/dispatch", "pipeline"):
        assert (ROOT / "tests" / package / "__init__.py").exists()
