"""The rules of the house: floors, lines, cells, names. What they are and why is told in CONTRIBUTING."""
import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from house import FLOORS

BIN = Path(sys.executable).parent
FUNCTION, CELL, MODULE, ROOMS, COLUMNS = 40, 40, 400, 10, 100
# what the floors that run on a bare GPU machine may import at module level
BARE = set("torch transformers huggingface_hub safetensors numpy PIL cv2 fastcore".split())
BARE_FLOORS = ("model", "backbones", "families", "policy")
LATER = (  # than families
    *("policy", "evaluation", "checkpoints", "runs", "processes", "optimizer", "engine", "settings"),
    *("training", "serving", "robots", "ros", "simulators", "rollout", "viz"),
)
TESTS = re.compile(r"\b(assert\w*|allclose|test_(eq|ne|close|is|fail|warns)|ExceptionExpected|raises)\b")


@cache
def modules() -> dict[str, Path]:
    "Name below the package -> file, of all that the notebooks make."
    files = [p for p in sorted((ROOT / "gr00t_nb").rglob("*.py")) if p.name[0] != "_"]
    names = [p.relative_to(ROOT / "gr00t_nb").with_suffix("").parts for p in files]
    return dict(zip(map(".".join, names), files))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def notebooks() -> dict[Path, list[dict]]:
    books = sorted((ROOT / "nbs").rglob("*.ipynb"))
    found = {p: json.loads(p.read_text())["cells"] for p in books if p.parent.name[0] != "."}
    for cells in found.values():
        for c in cells: c["source"] = "".join(c["source"])
    return found


def name_of(book: Path) -> str:
    return book.relative_to(ROOT / "nbs").as_posix()


def directive(source: str) -> str:
    m = re.match(r"\s*#\|\s*(\w+)", source)
    return m[1] if m else ""


def run(*command) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


# ---- floors

def test_floors():
    "No arrow upward, no circle, hidden imports included; `lint-imports` shows the chains."
    done = run(BIN / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rooms_are_read_in_order():
    "Inside a folder a notebook imports only from earlier ones."
    order = {}
    for book, cells in notebooks().items():
        for c in cells:
            if m := re.search(r"^#\|\s*default_exp\s+(\S+)", c["source"], re.M): order[m[1]] = book
    for module, path in modules().items():
        folder = module.rpartition(".")[0]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and folder:
                target = f"{folder}.{node.module}"
                assert order[target] < order[module], f"{module} imports {target}, a later notebook"


def test_rooms_are_few_and_small():
    per_floor = Counter(m.split(".")[0] for m in modules() if "." in m)
    assert max(per_floor.values()) <= ROOMS, per_floor.most_common(1)
    for module, path in modules().items():
        lines = [s for line in path.read_text().splitlines() if (s := line.strip()) and s[0] != "#"]
        assert len(lines) <= MODULE, f"{module} has {len(lines)} lines of code"


def test_the_reading_tour_names_every_floor():
    "In the order of the house, and of the ground each notebook."
    tour = notebooks()[ROOT / "nbs/tutorials/50_reading_tour.ipynb"][0]["source"]
    listed = [word for line in re.findall(r"^    (.*?)   ", tour, re.M) for word in line.split()]
    ground = [p.stem.partition("_")[2] for p in notebooks() if p.parent.name == "nbs" and p.stem[0].isdigit()]
    floors = [floor for floor in FLOORS if floor not in ("", "recipes", "tutorials")]
    assert listed == [*ground, *floors, "tutorials", "recipes"]


def test_the_readme_names_every_floor():
    "A row for each, in the order of the house."
    table = (ROOT / "README.md").read_text().partition("## How it is built")[2]
    floors = [floor for floor in FLOORS if floor not in ("", "recipes", "tutorials")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == floors


def test_imports_stand_at_the_top():
    "No import of the package is hidden in a function, and none takes another module's private name."
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            own = isinstance(node, ast.ImportFrom)
            if own and (node.level or node.module.startswith("gr00t_nb")):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, f"{module} takes {private[0]} of {node.module}"
                assert node.col_offset == 0, f"{module}, line {node.lineno}: a hidden import"


def test_a_public_name_exists_once():
    "But for `main`, which every command has."
    places = defaultdict(list)
    for module, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            elif any("patch" in ast.unparse(d) for d in node.decorator_list): continue
            else: names = [node.name]
            for name in names:
                if name[0] != "_" and name != "main": places[name].append(module)
    assert not {n: ms for n, ms in places.items() if len(ms) > 1}


def test_bare_machines():
    "What runs on a GPU machine imports at module level only what is there."
    for module, path in modules().items():
        if not module.startswith(BARE_FLOORS) and module != "engine.trainer": continue
        for node in tree(path).body:
            names = []
            if isinstance(node, ast.Import): names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
            for name in names:
                known = sys.stdlib_module_names | BARE | {"gr00t_nb"}
                assert name.split(".")[0] in known, f"{module} imports {name}"


def test_families_are_named_by_families_alone():
    "Everything later works with any family: none of it names one in code."
    floors = [m for m in modules() if m.split(".")[0] in LATER]
    for module in ("checkpoints.registry", "settings.recipe_book"): floors.remove(module)  # lists
    for module in floors:
        for node in ast.walk(tree(modules()[module])):
            texts = [getattr(node, name, None) for name in ("id", "attr", "value")]
            for text in [t for t in texts if isinstance(t, str) and " " not in t]:  # no prose
                assert not re.search(r"n1d[567]|n1\.[567]", text, re.I), f"{module}: {text}"


# ---- lines and cells

def test_ruff():
    "But for the first line of `__all__`, which nbdev breaks at 120 without its name."
    places = "gr00t_nb nbs tests scripts benchmarks docs data_samples export.py".split()
    done = run(BIN / "ruff", "check", "--no-cache", "--output-format", "json", *places)
    found = []
    for f in json.loads(done.stdout):
        path, row = Path(f["filename"]), f["location"]["row"]
        own = path.suffix == ".py" and path.read_text().splitlines()[row - 1].startswith("__all__")
        if not (own and f["code"] == "E501"):
            where = f"cell {f['cell']}, line {row}" if f["cell"] else f"line {row}"
            found.append(f"{path.relative_to(ROOT)}, {where}: {f['code']} {f['message']}")
    assert not found, "\n".join(found)


def test_no_name_is_unknown():
    "In package and tests alone: a notebook may have names from `%run`."
    asked = "gr00t_nb", "tests", "benchmarks", "data_samples", "docs"
    done = run(BIN / "ruff", "check", "--no-cache", "--select", "F821", "--output-format", "concise", *asked)
    assert done.returncode == 0, done.stdout



def test_no_rule_is_silenced():
    words = "#\\s*no" + "qa|per-file-" + "ignores"
    done = run("git", "grep", "-nE", words, "--", "*.py", "*.ipynb", "*.toml")
    assert not done.stdout, done.stdout


def test_few_lines_of_the_package_are_long():
    lines = [line for path in modules().values() for line in path.read_text().splitlines()]
    long = sum(len(line) > COLUMNS for line in lines)
    assert long <= 0.02 * len(lines), f"{long} of {len(lines)} lines go beyond column {COLUMNS}"


def body_lines(node) -> int:
    "Lines of a function behind its signature and docstring."
    first = node.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    body = node.body[1:] if docstring else node.body
    return node.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    for path in [*modules().values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = body_lines(node)
                assert lines <= FUNCTION, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("book", sorted(notebooks()), ids=name_of)
def test_cells(book):
    "Short exported cells, a sentence at least every third cell, narrow cells in tutorials."
    dry = 0
    for i, c in enumerate(notebooks()[book]):
        source, place = c["source"], f"cell {i}"
        if c["cell_type"] == "markdown": dry = 0
        if c["cell_type"] != "code" or not source.strip(): continue
        kind = directive(source)
        dry += kind not in ("default_exp", "hide")
        assert dry <= 3, f"{place}: the fourth code cell without a sentence"
        code = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
        if kind.startswith("export"):
            assert len(code) <= CELL, f"{place} exports {len(code)} lines"
        if book.parent.name == "tutorials":
            widest = max(map(len, code), default=0)
            assert widest <= 95, f"{place} is {widest} columns wide"


def test_pictures_are_plots():
    "pyplot keeps what it draws, and draws it as the caller's settings say; a `Plot` does neither."
    for book, cells in notebooks().items():
        for i, c in enumerate(cells):
            found = c["cell_type"] == "code" and re.search(r"\bplt\.(subplot\w*|figure|show)\(", c["source"])
            assert not found, f"{name_of(book)}, cell {i}: {found[0]} draws outside of the kit's style"


def only_imports(source: str) -> bool:
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


@pytest.mark.parametrize("book", sorted(notebooks()), ids=name_of)
def test_what_is_exported_is_shown(book):
    "At most three exported cells in a row without a demo or a test; imports do not count."
    bare = 0
    for i, c in enumerate(notebooks()[book]):
        source, kind = c["source"], directive(c["source"])
        if c["cell_type"] != "code" or not source.strip(): continue
        if kind.startswith("export"): bare += not only_imports(source)
        elif kind not in ("default_exp", "hide") or TESTS.search(source): bare = 0
        assert bare <= 3, f"cell {i}: the fourth exported cell in a row without a demo or test"
