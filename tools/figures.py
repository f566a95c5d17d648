"""Put the figures of a demo into the README and the docs: `python tools/figures.py [runs/demo]`.

Given a demo's folder, its figures become docs/figures.json and its picture docs/images/digits.png. The text between
the markers is then written from docs/figures.json, and that of the chapters from the files that the other scripts of
this folder measure (tools/ablation.py writes docs/ablation.json, and so on). A marker `figures: claims/ROOM/TOPIC.py`
becomes the table of that file's claims, from docs/evidence.json, and `figures: benchmarks/NAME` the section of that
name of benchmarks/RESULTS.md. `--check` only reports whether they are up to date.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures.json"
PICTURE = ROOT / "docs" / "images" / "digits.png"
PAGES = ("README.md", "docs/choose.md")
# A script of this folder that measures, and the pages that show it.
MEASURED = {
    "universal": ("docs/choose.md",),
    "stochastic": ("docs/choose.md",),
    "guidance": ("docs/choose.md",),
    "caching": ("docs/caching.md",),
    "one": ("docs/choose.md",),
    "students": ("docs/distillation.md",),
    "moving": ("docs/distillation.md",),
    "ablation": ("docs/chapters/grid.md",),
    "theory": ("docs/chapters/theory.md",),
    "medical": ("docs/chapters/medical.md",),
    "reconstruction": ("docs/chapters/medical.md",),
    "editing": ("docs/chapters/editing.md",),
    "tutorials": (
        "docs/tutorials/digits.md",
        "docs/tutorials/folder.md",
        "docs/tutorials/diffusers.md",
        "docs/tutorials/student.md",
        "docs/tutorials/captions.md",
        "docs/tutorials/half.md",
    ),
}
# With tables of claims, or sections of the benchmarks' results.
CLAIMED = (
    "docs/rooms/distillation.md",
    "docs/rooms/restoration.md",
    "docs/rooms/training.md",
    "docs/restore.md",
    "docs/compared.md",
)
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
EVIDENCE = ROOT / "docs" / "evidence.json"
END = "<!-- end -->"


def collect(demo: Path) -> dict[str, Any]:
    """What the pages need of a demo's result."""
    result = json.loads((demo / "result.json").read_text("utf-8"))
    if result.get("format") != "fewstep-demo-1":
        raise ValueError(f"{demo / 'result.json'} is not a demo's result")
    keys = (
        "model", "student", "n", "seed", "timesteps", "fast_nfe", "reference_nfe", "reference_error", "features",
        "floor", "validation", "seconds", "machine", "rows",
    )  # fmt: skip
    found = {key: result[key] for key in keys}
    found["cpu_seconds"] = result.get("cpu_seconds")  # None from a demo that did not count them
    found["notes"] = result["accelerate"]["notes"]
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def headline(figures: dict[str, Any]) -> list[str]:
    """The caption of the README's picture: a table with one line per row of it, and what an error is."""
    rows = figures["rows"]
    fast = next(row for row in rows if row["name"] == "accelerated")
    ddim = sorted((row for row in rows if row["name"] == "ddim"), key=lambda row: row["planned_nfe"])
    learned = f"plan learned by `fewstep accelerate {figures['model']}`"
    shown = [(learned, fast), ("`ddim`", ddim[-1]), ("`ddim`", ddim[0])]
    shown.append((f"student `{figures['student']}`, by `fewstep distill`", _student(figures)))
    body = [["1", "reference", str(rows[0]["planned_nfe"]), f"{_number(figures['reference_error'])} (estimated)"]]
    body += [
        [str(place), name, str(row["planned_nfe"]), _number(row["endpoint"])]
        for place, (name, row) in enumerate(shown, 2)
    ]
    told = (
        f"Error: mean distance from the reference's sample of the same noise, relative to the mean norm; {figures['n']}"
        " noises."
    )
    return [*_table(["row of the picture", "sampler", "network evaluations", "error"], body), "", told]


def _student(figures: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in figures["rows"] if row["name"] == figures["student"])


def digits(figures: dict[str, Any]) -> list[str]:
    """The README's table: the student, the accelerated plan, the best solver at as many evaluations, DDIM at most, the
    reference."""
    rows, nfe = figures["rows"], figures["fast_nfe"]
    reference, others = rows[0], [row for row in rows[1:] if row["endpoint"] is not None]
    fast = next(row for row in others if row["name"] == "accelerated")
    own = ("accelerated", figures["student"])
    hand = [row for row in others if row["name"] not in own and row["planned_nfe"] <= nfe]
    ddim = max((row for row in others if row["name"] == "ddim"), key=lambda row: row["planned_nfe"])
    top = [row for row in others if row["name"] not in (*own, "ddim") and row["planned_nfe"] == ddim["planned_nfe"]]
    best = min(hand, key=lambda row: row["endpoint"])
    chosen = [_student(figures), fast, best, ddim, *sorted(top, key=lambda row: row["endpoint"])[:1]]
    body = [
        [row["name"], str(row["actual_nfe"]).removesuffix(".0"), _number(row["endpoint"]), _number(row["frechet"])]
        for row in chosen
    ]
    error = f"{_number(figures['reference_error'])} (its own, estimated)"
    body.append(
        [f"reference ({reference['timesteps']})", str(reference["planned_nfe"]), error, _number(reference["frechet"])]
    )
    body.append(["real images against real images", "", "", _number(figures["floor"]["value"])])
    machine = figures["machine"]
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] != 1 else "")
    processor = figures.get("cpu_seconds")
    spent = f"{figures['seconds']:.0f} s" + (f" ({processor:.0f} CPU seconds)" if processor is not None else "")
    told = (
        f"Model `{figures['model']}`, {figures['n']} samples from the same noises, rule"
        f" `{figures['timesteps']}` unless another is named; Frechet distance in {figures['features']} to the"
        " training images. Error: mean distance from the reference's sample of the same noise over the mean norm."
        f" The whole demo took {spent} on {machine['device']} ({threads})."
    )
    return [*_table(["sampler", "evaluations", "error", "Frechet distance"], body), "", told]


def choose(figures: dict[str, Any]) -> list[str]:
    """The error of every solver at every number of evaluations; the best of each column is bold."""
    rows = [row for row in figures["rows"][1:] if row["name"] not in ("accelerated", figures["student"])]
    asked = sorted({row["asked_nfe"] for row in rows})
    at = {(row["name"], row["asked_nfe"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    best = {nfe: min(at[name, nfe]["endpoint"] or float("inf") for name in names) for nfe in asked}

    def cell(name: str, nfe: int) -> str:
        row = at[name, nfe]
        text = _number(row["endpoint"])
        text = f"**{text}**" if row["endpoint"] == best[nfe] else text
        return text if row["planned_nfe"] == nfe else f"{text} ({row['planned_nfe']})"

    fast = next(row for row in figures["rows"] if row["name"] == "accelerated")
    body = [[f"`{name}`", *(cell(name, nfe) for nfe in asked)] for name in names]
    learned = [_number(fast["endpoint"]) if nfe == fast["planned_nfe"] else "" for nfe in asked]
    told = (
        f"Endpoint error on the model `{figures['model']}`, {figures['n']} noises, rule"
        f" `{figures['timesteps']}` unless another is named, against {figures['reference_nfe']}"
        f" evaluations (whose own error is about {_number(figures['reference_error'])})."
        " In brackets: the evaluations used, where fewer than"
        " allowed. Bold: the best of each column."
    )
    head = ["solver", *(str(nfe) for nfe in asked)]
    return [told, "", *_table(head, [*body, ["`fewstep accelerate`", *learned]])]


def fill(text: str, figures: dict[str, Any]) -> str:
    """The page with its tables written anew."""
    for name, make in (("headline", headline), ("digits", digits), ("choose", choose)):
        if f"<!-- figures: {name} -->" in text:
            text = put(text, name, make(figures))
    return text


def put(text: str, name: str, lines: list[str]) -> str:
    """The page with other lines between the marker of that name and the next end."""
    begin = f"<!-- figures: {name} -->"
    before, rest = text.split(begin, 1)
    return "\n".join([before + begin, "", *lines, "", END]) + rest.split(END, 1)[1]


def fill_chapter(text: str, script: str) -> str:
    """A chapter with the tables of the script that measured them; a script may have one table or several, by marker."""
    spec = importlib.util.spec_from_file_location(script, Path(__file__).with_name(f"{script}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.lines(json.loads((ROOT / "docs" / f"{script}.json").read_text("utf-8")))
    for name, lines in made.items() if isinstance(made, dict) else [(script, made)]:
        if f"<!-- figures: {name} -->" in text:
            text = put(text, name, lines)
    return text


def claimed(evidence: dict[str, Any], file: str) -> list[str]:
    """The table of a file's claims: what was measured of each side, with its standard deviation over the seeds."""

    def cell(figure: float, spread: float | None) -> str:
        return _number(figure) + (f" ± {_number(spread)}" if spread else "")

    body = []
    for entry in (entry for entry in evidence["claims"] if entry["file"] == file):
        ours, theirs = entry.get("spread", (None, None))
        rival = f"{cell(entry['theirs'], theirs)} ({entry['against']})"
        held = "yes" if entry["holds"] else "no"
        sentence = entry["claim"].replace("|", "\\|")
        body.append([f"`{entry['method']}`", sentence, entry["unit"], cell(entry["ours"], ours), rival, held])
    return _table(["method", "claim", "measured", "method's", "against", "holds"], body)


def restorers(evidence: dict[str, Any]) -> list[str]:
    """The table of the methods of restoration, from their cards and the claims."""
    from fewstep.restoration.listing import PROBLEM, UNIT, listing

    body = []
    for row in listing(evidence):
        far = "" if row["distance"] is None else _number(row["distance"])
        takes = [f"`{row['method']}`", row["takes"], row["noise"], row["run by"], f"{row['passes']:g}", far]
        body.append([*takes, row["claim"]])
    head = ["method", "operators", "noise", "run by", "passes", "distance", ""]
    told = (
        "Passes: of the network for one evaluation, a vector product counted as two. Distance:"
        f" {UNIT}, where a claim measured it on the same problem ({PROBLEM}; the filter with 400 particles)."
    )
    return [*_table(head, body), "", told]


def fill_claims(text: str, evidence: dict[str, Any]) -> str:
    """A page with its tables of claims written anew."""
    if "<!-- figures: restorers -->" in text:
        text = put(text, "restorers", restorers(evidence))
    for name in re.findall(r"<!-- figures: (claims/\S+) -->", text):
        text = put(text, name, claimed(evidence, name))
    for name in re.findall(r"<!-- figures: benchmarks/(\S+) -->", text):
        text = put(text, f"benchmarks/{name}", section(RESULTS.read_text("utf-8"), name))
    return text


def section(results: str, name: str) -> list[str]:
    """The lines of a section of the benchmarks' results, without its heading."""
    found = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", results, re.DOTALL)
    if found is None:
        raise ValueError(f"the benchmarks' results have no section {name!r}")
    return [line for line in found[1].strip().splitlines() if not line.startswith("## ")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", nargs="?", type=Path, help="a demo's folder, such as runs/demo")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    given = parser.parse_args()
    if given.demo is not None:
        figures = collect(given.demo)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.demo / "samples.png", PICTURE)
    figures = json.loads(FIGURES.read_text("utf-8"))
    stale = []
    chapters = [(page, script) for script, pages in MEASURED.items() for page in pages]
    evidence = json.loads(EVIDENCE.read_text("utf-8"))
    for page, script in [*((page, "") for page in (*PAGES, *CLAIMED)), *chapters]:
        path = ROOT / page
        old = path.read_text("utf-8")
        new = fill_chapter(old, script) if script else fill_claims(fill(old, figures), evidence)
        if new != old:
            stale.append(page)
            if not given.check:
                path.write_text(new, "utf-8")
    print(f"{'out of date' if given.check else 'written'}: {', '.join(stale)}" if stale else "up to date")
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
