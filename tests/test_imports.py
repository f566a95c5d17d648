"""The order of the rooms, and what a file may hold: read from the source, nothing is imported."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fewstep.core.methods import methods

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fewstep"
FILES = sorted(PACKAGE.rglob("*.py"))
# A room imports rooms of the floors below it, and of its own floor those that do not import it.
FLOORS = (
    ("core", "report"),
    ("data", "networks", "processes", "timesteps", "conditions", "operators", "guidance"),
    ("denoisers", "metrics", "caching", "modalities"),
    ("sampling",),
    ("training", "hub", "searching", "restoration", "editing"),
    ("distillation", "compression", "acceleration", "safety", "three_d", "scale", "serving"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str | None:
    """The room of a file; None for the files at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of all imports, those inside functions and for type checking alone included."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found.append((str(node.module), node.lineno))
    return found


def used(path: Path) -> Iterator[tuple[str, str, int]]:
    """(room, module, line) of what a file imports from other rooms."""
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "fewstep" and len(parts) > 1 and parts[1] != room(path):
            assert parts[1] in FLOOR, f"{path}:{line}: {module} is in no known room"
            yield parts[1], module, line


def wrong(path: Path) -> list[str]:
    """The imports of a file that lead to a floor above its own."""
    here = room(path)
    if here is None:
        return []
    above = [(module, line) for other, module, line in used(path) if FLOOR[other] > FLOOR[here]]
    return [f"{path.relative_to(ROOT)}:{line} imports {module}" for module, line in above]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that can all reach each other."""

    def reached(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            new = edges.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    to = {node: reached(node) for node in edges}
    groups = {frozenset([node] + [other for other in to[node] if node in to.get(other, set())]) for node in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_a_room_imports_only_rooms_below_it():
    assert {room(path) for path in FILES} - {None} <= FLOOR.keys()
    assert [line for path in FILES for line in wrong(path)] == []


def test_rooms_of_one_floor_do_not_import_each_other():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        if (here := room(path)) is not None:
            edges.setdefault(here, set()).update(other for other, _, _ in used(path))
    assert circles(edges) == []


def test_no_files_import_each_other_in_a_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    edges = {name: {module for module, _ in imports(path)} & names.keys() for name, path in names.items()}
    assert circles(edges) == []


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "metrics").mkdir()
    file = tmp_path / "metrics" / "planted.py"
    file.write_text("from fewstep.data.digits import load\ndef f():\n    from fewstep.core.plan import Plan\n")
    assert wrong(file) == []
    parse.cache_clear()
    imports.cache_clear()
    file.write_text("def f():\n    import fewstep.cli.main\n")
    assert wrong(file) == ["metrics/planted.py:2 imports fewstep.cli.main"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_files_are_short_and_rightly_named():
    for path in FILES:
        assert len(path.read_text("utf-8").splitlines()) <= 400, path
        assert path.name != "utils.py", path
        if path.name == "__init__.py" and room(path) is not None:
            body = parse(path).body
            if room(path) == "operators":  # whose classes are public names of the room, found by their cards
                body = [node for node in body if getattr(node, "name", "") not in ("__getattr__", "__dir__")]
                body = [node for node in body if not isinstance(node, ast.ImportFrom)]
            assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), path


def test_nothing_imports_what_is_not_there_or_runs_code_from_files():
    found = {(module.split(".")[0], path) for path in FILES for module, _ in imports(path)}
    assert [
        where for where in found if where[0] in {"torchvision", "torchaudio", "pickle", "dill", "cloudpickle"}
    ] == []


def test_method_cards():
    names = [(card.kind, card.name) for card in methods()]
    assert len(names) == len(set(names)) > 40
    for card in methods():
        assert 0 < len(card.claim) < 100, card.name
        assert card.use and card.use.isidentifier(), card.name
        assert not card.arxiv or (len(card.arxiv) == 10 and card.arxiv[4] == "."), card.name
        assert not card.arxiv or card.paper, card.name
        tree = parse(PACKAGE.parent / card.file)
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert card.use in defined, f"{card.name}: {card.file} defines no {card.use}"


def loaded(code: str) -> set[str]:
    """The modules in memory after some Python."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_fewstep_loads_nothing_heavy():
    before, after = loaded(""), loaded("import fewstep")
    assert "fewstep" in after and "torch" not in after and "numpy" not in after
    assert len(after - before) < 60


def test_listing_the_methods_loads_no_torch():
    after = loaded("import fewstep; assert fewstep.methods('sampling')")
    assert "torch" not in after and "numpy" not in after


def test_no_public_function_has_the_name_of_a_room():
    import fewstep

    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not rooms & set(fewstep.__all__)
    code = (
        "import fewstep as fs, fewstep.searching.gits, fewstep.acceleration.pipeline;"
        "assert callable(fs.search) and callable(fs.accelerate) and fs.search is not fs.searching"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
