"""Pages that MkDocs builds from other sources: README, contributing guide, changelog, methods, reference.

The methods page comes from the method cards, which are read with `ast`, and from docs/evidence.json if it exists.
The reference is one page per room, built from the docstrings. Formulas between dollar signs become MathML, which
browsers render themselves.
"""

from __future__ import annotations

import ast
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "processes": "The forward processes: how a sample becomes noise.",
    "timesteps": "Where a sampling grid puts its times.",
    "sampling": "Solvers, wrappers around them, and what runs them. `unipc-3` is `unipc` of order 3.",
    "denoisers": "Everything that predicts: networks and closed forms.",
    "operators": "What measurements do to samples: masks, blurs, projections, noise.",
    "conditions": "What a denoiser takes besides the state and the time.",
    "caching": "Caches: what a run computes once and uses again.",
    "distillation": "Distillation: students of few evaluations, held to their teacher's exact flow.",
    "networks": "Networks for images.",
    "training": "Losses, couplings, fine-tuning, and the trainer.",
    "metrics": "Measures of the quality of samples.",
    "searching": "Searches: `fewstep search MODEL --method NAME`.",
    "acceleration": "The whole job: search, learn, judge.",
    "compression": "Smaller models of trained ones.",
}


def methods_page(evidence: dict[str, Any] | None = None) -> str:
    """The methods as Markdown, one table per room, with the figures of their claims."""
    sys.path.insert(0, str(ROOT))
    from fewstep.core.methods import methods

    cards = methods()
    found = _by_method(evidence or {})
    lines = [
        "# Methods",
        "",
        f"{len(cards)} methods, read from their source files. `fewstep methods WORD` searches them.",
        "",
    ]
    rooms = [*ROOMS, *sorted({card.room for card in cards} - set(ROOMS))]
    for room in rooms:
        inside = [card for card in cards if card.room == room]
        if not inside:
            continue
        lines += [f"## {room}", ""]
        if room in ROOMS:
            lines += [ROOMS[room], ""]
        measured = any((card.kind, card.name) in found for card in inside)
        head = ["name", "paper", "claim", *(["measured"] if measured else []), "file"]
        lines += [_row(head), _row(["---"] * len(head))]
        for card in inside:
            paper = f"[{card.paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.paper
            figures = [found.get((card.kind, card.name), "")] if measured else []
            lines.append(_row([f"`{card.name}`", paper, _plain(card.claim), *figures, f"`{card.file}`"]))
        lines.append("")
    return "\n".join(lines)


def compared_page(evidence: dict[str, Any] | None = None) -> str:
    """Every solver and search in one list, sorted, from the evidence's league."""
    evidence = evidence or {}
    league = evidence.get("tables", {}).get("league", {})
    about = evidence.get("about_tables", {}).get("league", {})
    budget = about.get("search_budget", [0, 0])
    lines = [
        "# Solvers and searches compared",
        "",
        "Relative error of the end point, against the exact (or far finer) solution from the same noises, smallest"
        f" first. Each solver uses the best of the rules {', '.join(about.get('rules', []))}; each search may use up"
        f" to {budget[0]:,} evaluations of the model on one sample ({budget[1]:,} of a network), on separate noises.",
        "",
    ]
    for problem, by_nfe in league.items():
        for nfe, rows in by_nfe.items():
            lines += [f"## {problem}, {nfe} evaluations", ""]
            lines += [_row(["", "name", "error", "times or plan", "NFE", "evaluations to find it", "seconds"])]
            lines += [_row(["---"] * 7)]
            for place, row in enumerate(rows, 1):
                name = f"**`{row['name']}`**" if row["kind"] == "search" else f"`{row['name']}`"
                cost = (f"{row['evaluations']:,}", f"{row['seconds']:g}") if row["kind"] == "search" else ("", "")
                lines.append(_row([str(place), name, f"{row['error']:.3g}", row["timesteps"], str(row["nfe"]), *cost]))
            lines.append("")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text in which Markdown sees no emphasis."""
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _by_method(evidence: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What the claims measured, as one line per method, by kind and name; a claim that fails is marked."""
    from claims.claim import card_of

    lines: dict[tuple[str, str], list[str]] = {}

    def key(claim: dict[str, Any]) -> tuple[str, str]:
        found = card_of(claim["method"], claim["file"])
        return found.kind, found.name

    for claim in evidence.get("claims", []):
        holds = "" if claim["holds"] else "**does not hold:** "
        way = "lower" if claim["better"] == "low" else "higher"
        spread = [f" (+- {value:.2g})" for value in claim.get("spread", ())] or ["", ""]
        figures = f"{claim['ours']:.3g}{spread[0]} against {claim['theirs']:.3g}{spread[1]}"
        text = f"{holds}{claim['claim']}: {figures} ({claim['against']}; {way} is better)"
        lines.setdefault(key(claim), []).append(text)
    for claim in evidence.get("pending", []):
        lines.setdefault(key(claim), []).append(f"not measured yet: {claim['claim']}")
    return {name: "<br>".join(texts) for name, texts in lines.items()}


def read_evidence() -> dict[str, Any] | None:
    path = ROOT / "docs" / "evidence.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def reference_pages() -> dict[str, str]:
    """The reference: the names in `fewstep` itself, and one page per room, with a section for each of its files."""
    from fewstep import HOMES

    package = ROOT / "fewstep"
    rooms = [path.name for path in sorted(package.iterdir()) if (path / "__init__.py").is_file() and path.name != "cli"]
    lines = [
        "# Reference",
        "",
        "The names available after `import fewstep as fs`, with links to their documentation.",
        "",
        _row(["name", "module"]),
        _row(["---"] * 2),
    ]
    for name, home in sorted(HOMES.items()):
        lines.append(_row([f"[`fs.{name}`]({home.split('.')[1]}.md#{home}.{name})", f"`{home}`"]))
    lines += ["", "## Rooms", ""]
    pages: dict[str, str] = {}
    for room in rooms:
        told = ast.get_docstring(ast.parse((package / room / "__init__.py").read_text("utf-8"))) or ""
        lines.append(f"- [`fewstep.{room}`]({room}.md): {told.splitlines()[0] if told else ''}".rstrip(": "))
        files = sorted(path.stem for path in (package / room).glob("*.py") if not path.stem.startswith("_"))
        sections = [f"::: fewstep.{room}.{name}" for name in files]
        pages[f"api/{room}.md"] = "\n\n".join([f"# fewstep.{room}", told, *sections]) + "\n"
    return {"api/index.md": "\n".join(lines) + "\n"} | pages


def _kept(found: re.Match[str]) -> str:
    """A link in a page from the root unchanged, or only its text if its target is not a page of the site."""
    return found[0] if (ROOT / "docs" / found[2].partition("#")[0]).exists() else found[1]


def generated() -> dict[str, str]:
    """Every page that is not a file in docs/, by name."""
    links = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)"}
    links["](LICENSE)"] = "](https://www.apache.org/licenses/LICENSE-2.0)"

    def from_root(name: str) -> str:
        text = (ROOT / name).read_text("utf-8")
        for old, new in links.items():
            text = text.replace(old, new)
        # Links to what is in the repository but not on the site become plain text.
        return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+/[^)\s]+)\)", _kept, text)

    return {
        "index.md": from_root("README.md"),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "changelog.md": from_root("CHANGELOG.md"),
        "methods.md": methods_page(read_evidence()),
        "compared.md": compared_page(read_evidence()),
    } | reference_pages()


def on_config(config: Any) -> Any:
    """MkDocs' hook: puts the reference's pages, one for each room, into the navigation."""
    pages = [name for name in reference_pages() if name != "api/index.md"]
    rooms = [{f"fewstep.{Path(name).stem}": name} for name in pages]
    config.nav = [{"Reference": ["api/index.md", *rooms]} if "Reference" in entry else entry for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' hook: adds the pages."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    return files


# What pymdownx.arithmatex leaves of $...$ and $$...$$ when it is told to be generic.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """MkDocs' hook: formulas become MathML. An unknown command fails the build."""
    return FORMULA.sub(lambda found: _mathml(html.unescape(found[3]).strip(), found[2] == "["), page_html)


def _mathml(tex: str, block: bool) -> str:
    from latex2mathml.converter import convert

    made = convert(tex, display="block" if block else "inline")
    # Put space between a function's name and its argument, unless that is in brackets.
    made = re.sub(r"(<mi>(?:log|exp|cos|sin)</mi>)(?!<mo[^>]*>&#x00028;)", r'\1<mspace width="0.167em" />', made)
    if unknown := re.search(r"<m[io]>(\\[a-zA-Z]+)</m[io]>", made):
        raise ValueError(f"no MathML for {unknown[1]} in the formula {tex!r}")
    tag = "div" if block else "span"
    return f'<{tag} class="formula">{made}</{tag}>'
