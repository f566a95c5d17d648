"""The order of the rooms, and what a file may hold: read from the source, nothing is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.core.methods import methods

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fewstep"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = (
    ("core",),
    ("conditions",),
    ("data", "metrics", "report", "networks"),
    ("processes", "timesteps", "denoisers"),
    ("sampling", "guidance", "caching", "compression", "training"),
    (
        "searching", "distillation", "restoration", "editing", "three_d", "safety", "scale", "hub", "modalities",
    ),
    ("acceleration", "serving"),
    ("cli",),
)  # fmt: skip
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def room(path: Path) -> str | None:
    """The room of a file; None for the files at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imports(tree: ast.Module) -> Iterator[tuple[str, bool, int]]:
    """(module, whether it is imported inside a function or for type checking alone, line)."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: imports are absolute"
                yield str(child.module), lazy, child.lineno
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                    isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                )
                yield from walk(child, lazy or inside)

    yield from walk(tree, False)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def wrong(path: Path) -> list[str]:
    """The imports of a file that point upwards, or sideways to another room at the top of the file."""
    here = room(path)
    if here is None:
        return []
    found = []
    for module, lazy, line in imports(parse(path)):
        parts = module.split(".")
        if parts[0] != "fewstep" or len(parts) < 2 or parts[1] == here:
            continue
        assert parts[1] in LEVEL, f"{path}:{line}: {module} is in no known room"
        up, side = LEVEL[parts[1]] > LEVEL[here], LEVEL[parts[1]] == LEVEL[here]
        # Rooms of one level may use each other, but only when a function needs it: then no import is a circle.
        if up or (side and not lazy):
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    assert room(path) is None or room(path) in LEVEL
    assert wrong(path) == []


def test_an_import_that_points_upwards_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "metrics").mkdir()
    file = tmp_path / "metrics" / "planted.py"
    file.write_text("def f():\n    from fewstep.data.digits import load\n")
    assert wrong(file) == []
    file.write_text("from fewstep.data.digits import load\nfrom fewstep.core.plan import Plan\n")
    assert wrong(file) == ["metrics/planted.py:1 imports fewstep.data.digits"]
    file.write_text("def f():\n    import fewstep.cli.main\n")
    assert wrong(file) == ["metrics/planted.py:2 imports fewstep.cli.main"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_and_rightly_named(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400
    assert path.name != "utils.py"
    if path.name == "__init__.py" and room(path) is not None:
        body = parse(path).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_torchvision(path):
    found = {module.split(".")[0] for module, _, _ in imports(parse(path))}
    assert not found & {"torchvision", "torchaudio", "pickle", "dill", "cloudpickle"}


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
