"""The structural laws: each checker reads source trees and returns its breaches, and each is shown to catch one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "qlora_demo"
TIERS = tuple(
    set(tier.split())
    for tier in (
        "app __main__ cli",
        "commands compose",
        "ui ml",
        "upkeep",
        "services",
        "benchmark launcher presets",
        "results",
        "visitors engine",
        "plan",
        "rows catalog checking columns gpu hub jobs memory runs sources stored",
        "config knobs records settings",
        "system",
        "errors units",
    )
)
"""Rooms and the package's own files, from the top down."""
ENGINE_LIBRARIES = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One module's file, parsed."""

    module: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The part of the name that has a tier; empty for the package itself, which everything may import."""
        return _room(self.module)

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())


Sources = dict[str, Source]
Checker = Callable[[Sources], list[str]]


def read_sources(root: Path) -> Sources:
    """app.py and every module of the package under `root`."""
    found = (_read(root, path) for path in [root / "app.py", *sorted((root / PACKAGE).rglob("*.py"))])
    return {source.module: source for source in found}


def _read(root: Path, path: Path) -> Source:
    parts = path.relative_to(root).with_suffix("").parts
    text = path.read_text("utf-8")
    return Source(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, text, ast.parse(text))


def _room(module: str) -> str:
    return module if module == "app" else [*module.split("."), ""][1]


def _tier(room: str) -> int | None:
    return next((number for number, tier in enumerate(TIERS) if room in tier), None)


def imported(source: Source) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every import in a file, in functions too: the absolute module, and the names taken from it."""
    package = source.module if source.path.stem == "__init__" else source.module.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield ".".join([*parents, *([node.module] if node.module else [])]), names


def internal_imports(source: Source, sources: Sources) -> set[str]:
    """The modules among `sources` that one of them imports."""
    found = set()
    for module, names in imported(source):
        submodules = {f"{module}.{name}" for name in names} & set(sources)
        found |= submodules or ({module} & set(sources))
    return found - {source.module}


def functions(node: ast.AST, owner: ast.AST | None = None) -> Iterator[tuple[Function, ast.AST | None]]:
    """Every function under a node, with the class or function that it stands in, if any."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child, owner
        yield from functions(child, child if isinstance(child, ast.ClassDef | Function) else owner)


def imports_point_down(sources: Sources) -> list[str]:
    """Law 1: a module imports only from its own tier or those below; ui and ml never each other."""
    breaches = [f"{s.module} has no tier" for s in sources.values() if s.room and _tier(s.room) is None]
    for source in sources.values():
        for target in sorted(internal_imports(source, sources)):
            above, below = _tier(source.room), _tier(_room(target))
            upward = above is not None and below is not None and below < above
            if upward or {source.room, _room(target)} == {"ui", "ml"} or (not source.room and _room(target)):
                breaches.append(f"{source.module} imports {target}")
    return breaches


def imports_have_no_cycle(sources: Sources) -> list[str]:
    """Law 1: no module imports itself by way of others."""
    graph = {source.module: internal_imports(source, sources) for source in sources.values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return [" <- ".join(exc.args[1])]
    return []


def libraries_stay_in_their_rooms(sources: Sources) -> list[str]:
    """Law 2: torch and its family in ml only, gradio in ui only and not in what renders."""
    breaches = []
    for source in sources.values():
        libraries = {module.split(".")[0] for module, _ in imported(source)}
        barred = set() if source.room == "ml" else set(ENGINE_LIBRARIES)
        if source.room != "ui" or "render" in source.module:
            barred.add("gradio")
        breaches += [f"{source.module} imports {name}" for name in sorted(libraries & barred)]
    return breaches


def broad_handlers_have_a_reason(sources: Sources) -> list[str]:
    """Law 8: no bare except; `except Exception` to raise another, or with a reason, and never to do nothing."""
    return [
        f"{source.module}:{node.lineno}"
        for source in sources.values()
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.ExceptHandler) and _is_careless(node, source))
        or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(_broad, node.args)))
    ]


def _is_careless(handler: ast.ExceptHandler, source: Source) -> bool:
    if handler.type is not None and not _broad(handler.type):
        return False
    line = source.text.splitlines()[handler.lineno - 1]
    if handler.type is not None and isinstance(handler.body[-1], ast.Raise):
        return False
    does_nothing = all(isinstance(node, ast.Pass) for node in handler.body)
    return handler.type is None or does_nothing or not re.search(r"# noqa: BLE001\W+\w", line)


def _broad(expression: ast.expr) -> bool:
    kinds = expression.elts if isinstance(expression, ast.Tuple) else [expression]
    return any(ast.unparse(kind).removeprefix("builtins.") in {"Exception", "BaseException"} for kind in kinds)


def files_are_short(sources: Sources) -> list[str]:
    """Short: app.py has at most 40 lines, any other file 350."""
    limits = {source.module: 40 if source.module == "app" else 350 for source in sources.values()}
    return [f"{s.module} has {s.lines} lines" for s in sources.values() if s.lines > limits[s.module]]


def functions_are_short(sources: Sources) -> list[str]:
    """Short: at most 60 lines of a function's own; the functions inside it count by themselves."""
    return [
        f"{source.module}.{function.name} has {own} lines"
        for source in sources.values()
        for function, _ in functions(source.tree)
        if (own := len(_lines(function).difference(*(_lines(inner) for inner, _ in functions(function))))) > 60
    ]


def _lines(function: Function) -> set[int]:
    return set(range(function.lineno, (function.end_lineno or function.lineno) + 1))


def functions_take_few_positional_parameters(sources: Sources) -> list[str]:
    """Short: at most five besides self; handlers, nested in the function that draws, take what it shows."""
    breaches = []
    for source in sources.values():
        for function, owner in functions(source.tree):
            static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
            count = len(function.args.posonlyargs + function.args.args)
            count -= isinstance(owner, ast.ClassDef) and not static
            if count > 5 and not isinstance(owner, Function):
                breaches.append(f"{source.module}.{function.name} takes {count}")
    return breaches


def public_names_have_docstrings(sources: Sources) -> list[str]:
    """Every module, and every public class and function at its top level, says what it is for."""
    breaches = []
    for source in sources.values():
        named = [n for n in source.tree.body if isinstance(n, ast.ClassDef | Function) and not n.name.startswith("_")]
        breaches += [] if ast.get_docstring(source.tree) else [source.module]
        breaches += [f"{source.module}.{node.name}" for node in named if not ast.get_docstring(node)]
    return breaches


def _function(parameters: str, lines: int) -> str:
    return f"def f({parameters}):\n" + "    g()\n" * (lines - 1)


BREACHES: list[tuple[Checker, dict[str, str], list[str]]] = [
    (
        imports_point_down,
        {"runs": "def f():\n    from .ui import page\n"},
        ["qlora_demo.runs imports qlora_demo.ui.page"],
    ),
    (imports_point_down, {"config": "import qlora_demo.runs\n"}, ["qlora_demo.config imports qlora_demo.runs"]),
    (imports_point_down, {"ui/page": "from ..ml import train\n"}, ["qlora_demo.ui.page imports qlora_demo.ml.train"]),
    (imports_point_down, {"ml/train": "from ..ui.page import x\n"}, ["qlora_demo.ml.train imports qlora_demo.ui.page"]),
    (imports_point_down, {"ml/train": "from qlora_demo import cli\n"}, ["qlora_demo.ml.train imports qlora_demo.cli"]),
    (imports_point_down, {"__init__": "from . import config\n"}, ["qlora_demo imports qlora_demo.config"]),
    (imports_point_down, {"attic": ""}, ["qlora_demo.attic has no tier"]),
    (
        imports_have_no_cycle,
        {"runs": "from . import gpu\n", "gpu": "def f():\n    from .runs import x\n"},
        ["qlora_demo.gpu <- qlora_demo.runs <- qlora_demo.gpu"],
    ),
    (libraries_stay_in_their_rooms, {"runs": "def f():\n    import torch.cuda\n"}, ["qlora_demo.runs imports torch"]),
    (libraries_stay_in_their_rooms, {"ml/train": "import gradio\n"}, ["qlora_demo.ml.train imports gradio"]),
    (libraries_stay_in_their_rooms, {"ui/page": "from peft import x\n"}, ["qlora_demo.ui.page imports peft"]),
    (libraries_stay_in_their_rooms, {"ui/render": "import gradio as gr\n"}, ["qlora_demo.ui.render imports gradio"]),
    (broad_handlers_have_a_reason, {"runs": "try:\n    f()\nexcept:\n    g()\n"}, ["qlora_demo.runs:3"]),
    (broad_handlers_have_a_reason, {"runs": "try:\n    f()\nexcept Exception:\n    g()\n"}, ["qlora_demo.runs:3"]),
    (
        broad_handlers_have_a_reason,
        {"runs": "try:\n    f()\nexcept (OSError, BaseException):  # noqa: BLE001\n    g()\n"},
        ["qlora_demo.runs:3"],
    ),
    (
        broad_handlers_have_a_reason,
        {"runs": "try:\n    f()\nexcept Exception:  # noqa: BLE001 - why not\n    pass\n"},
        ["qlora_demo.runs:3"],
    ),
    (broad_handlers_have_a_reason, {"runs": "with contextlib.suppress(Exception):\n    f()\n"}, ["qlora_demo.runs:1"]),
    (files_are_short, {"../app": "x = 1\n" * 41}, ["app has 41 lines"]),
    (files_are_short, {"runs": "x = 1\n" * 351}, ["qlora_demo.runs has 351 lines"]),
    (functions_are_short, {"runs": _function("", 61)}, ["qlora_demo.runs.f has 61 lines"]),
    (
        functions_take_few_positional_parameters,
        {"runs": _function("a, b, /, c, d, e, f", 2)},
        ["qlora_demo.runs.f takes 6"],
    ),
    (
        functions_take_few_positional_parameters,
        {"runs": "class C:\n    def f(self, a, b, c, d, e, f): ...\n"},
        ["qlora_demo.runs.f takes 6"],
    ),
    (public_names_have_docstrings, {"runs": "x = 1\n"}, ["qlora_demo.runs"]),
    (
        public_names_have_docstrings,
        {"runs": '"""Runs."""\n\n\ndef f(): ...\n\n\nclass C: ...\n'},
        ["qlora_demo.runs.f", "qlora_demo.runs.C"],
    ),
]
LAWS = list(dict.fromkeys(checker for checker, _, _ in BREACHES))


@pytest.fixture(scope="module")
def code() -> Sources:
    """The package as it stands."""
    return read_sources(ROOT)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_code_keeps_the_law(law: Checker, code: Sources) -> None:
    assert law(code) == []


def test_files_of_tests_and_benchmarks_are_short_too() -> None:
    files = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if len(path.read_text("utf-8").splitlines()) > 350] == []


@pytest.mark.parametrize(("law", "files", "breaches"), BREACHES, ids=lambda part: getattr(part, "__name__", ""))
def test_a_breach_of_the_law_is_caught(
    law: Checker, files: dict[str, str], breaches: list[str], tmp_path: Path
) -> None:
    rooms = dict.fromkeys(["../app", "__init__", "cli", "ui/page", "ml/train", "runs", "config"], '"""Made up."""\n')
    for name, text in (rooms | files).items():
        path = (tmp_path / PACKAGE / name).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert law(read_sources(tmp_path)) == breaches


def test_five_positional_parameters_sixty_lines_and_a_reason_are_allowed(tmp_path: Path) -> None:
    nested = "def build():\n    def handler(a, b, c, d, e, f): ...\n" + "    def inner():\n" + "        g()\n" * 59
    method = "class C:\n    def m(self, a, b, c, d, e, *, f): ...\n    @staticmethod\n    def s(a, b, c, d, e): ...\n"
    reason = "try:\n    f()\nexcept Exception as exc:  # noqa: BLE001 - shown to the person\n    g(exc)\n"
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / "app.py").write_text("x = 1\n" * 40, "utf-8")
    (tmp_path / PACKAGE / "runs.py").write_text(_function("a, b, c, d, e", 60) + nested + method + reason, "utf-8")
    checked = [files_are_short, functions_are_short, functions_take_few_positional_parameters]
    assert [law(read_sources(tmp_path)) for law in [*checked, broad_handlers_have_a_reason]] == [[]] * 4


def test_every_room_that_has_a_tier_is_read(code: Sources) -> None:
    assert {source.room for source in code.values()} == {"", *set().union(*TIERS)}


def test_relative_and_lazy_imports_are_read(code: Sources) -> None:
    assert internal_imports(code["qlora_demo.compose"], code) >= {"qlora_demo.ml.engine", "qlora_demo.ui.page"}
    assert internal_imports(code["qlora_demo.ui.page"], code) >= {"qlora_demo.ui.render", "qlora_demo.gpu", PACKAGE}


@pytest.mark.slow
def test_building_the_page_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
import qlora_demo.ui.page
from qlora_demo.compose import build_services
from qlora_demo.settings import Settings
from qlora_demo.upkeep.status import AppStatus
page = qlora_demo.ui.page.build_page(build_services(Settings(Path({str(tmp_path)!r}))), AppStatus())
print(type(page).__name__, *sorted({ENGINE_LIBRARIES!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["Page"], 0), done.stderr


def test_the_readme_maps_every_module_in_its_room(code: Sources) -> None:
    sections = (ROOT / "README.md").read_text("utf-8").split("## File map")[1].split("\n### ")[1:]
    named = {
        f"{room[1]}{name}"
        for section in sections
        if (room := re.match(rf"`({PACKAGE}/(?:\w+/)?)`", section))
        for name in re.findall(r"`(\w+\.py)`", section)
    }
    files = {source.path.relative_to(ROOT).as_posix() for source in code.values()}
    assert named == {name for name in files - {"app.py"} if not name.endswith("__init__.py")}
