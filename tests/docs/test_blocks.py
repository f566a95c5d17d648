"""Every Python block of the README and the docs runs, page by page, and their tables are the measured ones."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.core.methods import methods

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A minute each, and the longest of the other pages.
SLOW = {
    "tutorials/digits.md",
    "tutorials/folder.md",
    "tutorials/diffusers.md",
    "tutorials/student.md",
    "tutorials/captions.md",
    "tutorials/half.md",
    "chapters/medical.md",
    "choose.md",
    "accelerate.md",
    "bring.md",
    "caching.md",
    "distillation.md",
    "chapters/tasks.md",
    "training.md",
}
NEEDS = {"bring.md": "diffusers", "diffusers.md": "diffusers", "tasks.md": "peft"}


def load(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def made_pages() -> set[Path]:
    """Where the pages that no file of docs/ holds would lie."""
    return {(ROOT / "docs" / name).resolve() for name in load("pages").generated()}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def marked(page: Path):
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if name_of(page) in SLOW else [])


@pytest.mark.parametrize("page", [marked(page) for page in with_blocks("python")])
def test_python_runs(page, tmp_path, monkeypatch):
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    if page.name == "README.md":
        assert names["x"].shape == (16, 1, 8, 8) and names["plan"].nfe == 8
        assert set(names["figures"]) >= {"frechet", "accuracy"} and names["figures"]["accuracy"]["value"] > 0.8


@pytest.mark.parametrize("page", with_blocks("sh"), ids=name_of)
def test_commands_exist(page):
    """Every `fewstep` line names a command and options that it has; every `make` line a target."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = line.split("#")[0].split()
        if words and words[0] == "make":
            assert words[1] in targets, line
        elif words:
            assert words[0] == "fewstep", line
            folder = ROOT / "fewstep" / "cli"
            source, shared = (folder / f"{words[1]}.py").read_text(), (folder / "common.py").read_text()
            for option in (word for word in words if word.startswith("--")):
                named = f'"{option}"' in source or (f'"{option}"' in shared and "PlanFile" in source)
                assert named or f"{option[2:].replace('-', '_')}:" in source, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)):
        path = page.parent / target
        assert target.startswith("https://") or path.exists() or path.resolve() in made_pages(), target


def test_tables_are_the_measured_ones():
    done = subprocess.run([sys.executable, ROOT / "tools" / "figures.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run `make figures`"
    figures = json.loads((ROOT / "docs" / "figures.json").read_text())
    assert {row["name"] for row in figures["rows"]} >= {"reference", "accelerated", "ddim"}
    tool = load("figures")
    fast = next(row for row in figures["rows"] if row["name"] == "accelerated")
    assert f"{fast['endpoint']:.3g}" in (ROOT / "README.md").read_text()
    changed = figures | {"rows": [row | {"endpoint": 0.123456} for row in figures["rows"]]}
    assert tool.fill((ROOT / "README.md").read_text(), changed) != (ROOT / "README.md").read_text()


def test_the_headline_names_the_rows_of_the_picture():
    """The picture records what its rows are; the table under it has the same, in order."""
    from PIL import Image

    tool = load("figures")
    with Image.open(tool.PICTURE) as picture:
        rows = json.loads(picture.info["fewstep"])["rows"]
    table = [line.split(" | ") for line in tool.headline(json.loads(tool.FIGURES.read_text())) if line.startswith("| ")]
    assert [cells[2] for cells in table[2:]] == [str(row["planned_nfe"]) for row in rows]
    for cells, row in zip(table[2:], rows, strict=True):
        assert ("accelerate" if row["name"] == "accelerated" else row["name"]) in cells[1]
        assert row["name"] == "reference" or cells[3].removesuffix(" |") == f"{row['endpoint']:.3g}"


@pytest.mark.parametrize(
    "script", ["ablation", "theory", "medical", "reconstruction", "editing", "tutorials", "students", "one"]
)
def test_chapters_show_what_was_measured(script):
    """The tables and sentences of a chapter are made of the figures, so other figures make other ones."""
    tool, module = load("figures"), load(script)
    found = json.loads((ROOT / "docs" / f"{script}.json").read_text("utf-8"))
    made = module.lines(found)
    tables = made if isinstance(made, dict) else {script: made}
    pages = [(ROOT / page).read_text("utf-8") for page in tool.MEASURED[script]]
    for name, lines in tables.items():
        (page,) = [page for page in pages if f"<!-- figures: {name} -->" in page]
        assert "\n".join(lines) in page

    def moved(value):
        if isinstance(value, dict):
            return {key: moved(part) for key, part in value.items()}
        if isinstance(value, list):
            return [moved(part) for part in value]
        return value * 0.7 + 0.01 if isinstance(value, float) and not value.is_integer() else value

    again = module.lines(moved(found))
    other = again if isinstance(again, dict) else {script: again}
    assert all(other[name] != lines for name, lines in tables.items())


def test_what_the_chapters_conclude():
    """The sentences that the chapters' own text makes of the figures; if one fails, the text must say so."""
    docs = {
        name: json.loads((ROOT / "docs" / f"{name}.json").read_text("utf-8"))
        for name in ("theory", "medical", "editing", "one", "students")
    }
    rewards = docs["theory"]["rewards"]
    assert max(row["exact_off"] for row in rewards) < 1e-3 < rewards[-1]["learned_off"]
    assert rewards[-1]["learned"] < max(row["learned"] for row in rewards)
    for row in docs["medical"]["rows"]:
        assert max(row["levels"].values()) > max(row["mean"], row["scaled"])
    for rows in docs["one"]["sizes"].values():  # the student, below every plan of three evaluations, near its teacher
        student, teacher = rows[0]["frechet"][0], rows[1]["frechet"][0]
        assert student < 1.1 * teacher
        assert student < min(row["frechet"][0] for row in rows[2:] if row["nfe"] <= 3)
    nearest = {row["method"]: row["distance"] for row in docs["students"]["rows"] if "distance" in row}
    plan = nearest.pop("the teacher's best plan")
    students = {name: own for name, own in nearest.items() if name != "real against real"}
    assert set(sorted(students, key=lambda name: students[name]["1"][0])[:2]) == {"kd", "sfd"}
    assert plan["4"][0] < min(own["4"][0] for own in students.values() if "4" in own)
    assert students["ctm"]["1"] < students["flow-map"]["1"]
    editors = {row["editor"]: row for row in docs["editing"]["rows"]}
    assert editors["inpainting"]["kept"] == 0 < editors["image to image, 0.4"]["kept"]


def test_the_families_of_distillation_have_every_method():
    page = (ROOT / "docs" / "distillation.md").read_text("utf-8")
    table = page[page.index("| family | methods") :].split("\n\n")[0]
    named = re.findall(r"`([a-z0-9-]+)`", "".join(line.split("|")[2] for line in table.splitlines()[2:]))
    assert sorted(named) == sorted(card.name for card in methods("distiller"))


def test_formulas_become_mathml():
    tool = load("pages")
    page = (
        '<p><span class="arithmatex">\\(\\frac{a}{b} &lt; \\log x\\)</span></p><div class="arithmatex">\\[x_t\\]</div>'
    )
    made = tool.on_page_content(page)
    assert made.count("<math") == 2 and "mfrac" in made and "arithmatex" not in made and 'display="block"' in made
    with pytest.raises(ValueError, match="no MathML for"):
        tool.on_page_content('<span class="arithmatex">\\(\\nonsense x\\)</span>')


def test_the_reference_names_every_room_and_every_public_name():
    import fewstep as fs

    pages = load("pages").reference_pages()
    for name in fs.__all__:
        assert f"[`fs.{name}`]" in pages["api/index.md"]
    for path in (ROOT / "fewstep").glob("*/*.py"):
        if not path.stem.startswith("_") and path.parent.name != "cli":
            assert f"::: fewstep.{path.parent.name}.{path.stem}\n" in pages[f"api/{path.parent.name}.md"]


def test_the_methods_page_has_every_method():
    tool = load("pages")
    page = tool.methods_page()
    for card in methods():
        assert f"| `{card.name}` |" in page and card.file in page
    claim = {"method": "unipc-3", "claim": "beats ddim", "ours": 0.5, "theirs": 2.0, "against": "ddim"}
    claim |= {"better": "high", "holds": False, "file": "claims/sampling/multistep.py"}
    lines = tool.methods_page({"claims": [claim]}).splitlines()
    (line,) = [line for line in lines if line.startswith("| `unipc` |")]
    assert "**does not hold:** beats ddim: 0.5 against 2 (ddim; higher is better)" in line
    both = [claim | {"method": "flow-map", "file": f"claims/{room}/maps.py", "claim": room} for room in
            ("sampling", "distillation")]  # fmt: skip
    rows = [line for line in tool.methods_page({"claims": both}).splitlines() if line.startswith("| `flow-map` |")]
    assert [("sampling:" in row, "distillation:" in row) for row in rows] == [(True, False), (False, True)]


def test_the_site_asks_for_nothing_outside():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text and "analytics" not in text and "strict: true" in text and "http" not in text
