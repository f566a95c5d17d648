"""Pages that MkDocs makes from elsewhere: the README, the contributing guide, the changelog, and the methods.

The methods page comes from the method cards, which are read with `ast`, and from docs/evidence.json where it is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "processes": "The forward processes: how a sample turns into noise.",
    "timesteps": "Where a sampling grid puts its times.",
    "sampling": "Solvers, what wraps them, and what runs them. `unipc-3` is `unipc` of order 3.",
    "denoisers": "What predicts: networks and closed forms.",
    "networks": "Networks for images.",
    "training": "Training.",
    "metrics": "Measures of samples.",
    "search": "Searches: `fewstep search MODEL --method NAME`.",
    "accelerate": "The whole job: search, learn, judge.",
}


def methods_page(evidence: dict[str, Any] | None = None) -> str:
    """The methods as Markdown, one table a room, with the figures of their claims."""
    sys.path.insert(0, str(ROOT))
    from fewstep.core.methods import methods

    cards = methods()
    found = _by_method(evidence or {})
    lines = [
        "# Methods",
        "",
        f"{len(cards)} methods, read from their files. `fewstep methods WORD` searches them.",
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
        measured = any(card.name in found for card in inside)
        head = ["name", "paper", "claim", *(["measured"] if measured else []), "file"]
        lines += [_row(head), _row(["---"] * len(head))]
        for card in inside:
            paper = f"[{card.paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.paper
            figures = [found.get(card.name, "")] if measured else []
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
        "Relative error of the end point, against the exact (or far finer) solution from the same noises, least"
        f" first. A solver has the best of the rules {', '.join(about.get('rules', []))}; a search has had up to"
        f" {budget[0]:,} evaluations of the model on one sample ({budget[1]:,} of a network), on noises of its own.",
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


def _by_method(evidence: dict[str, Any]) -> dict[str, str]:
    """What the claims measured, as a line a method; a claim that fails says so."""
    from fewstep.core.methods import card

    lines: dict[str, list[str]] = {}
    for claim in evidence.get("claims", []):
        holds = "" if claim["holds"] else "**does not hold:** "
        way = "lower" if claim["better"] == "low" else "higher"
        spread = [f" (+- {value:.2g})" for value in claim.get("spread", ())] or ["", ""]
        figures = f"{claim['ours']:.3g}{spread[0]} against {claim['theirs']:.3g}{spread[1]}"
        text = f"{holds}{claim['claim']}: {figures} ({claim['against']}; {way} is better)"
        lines.setdefault(card(claim["method"])[0].name, []).append(text)  # a claim may name an order: unipc-3
    for claim in evidence.get("pending", []):
        lines.setdefault(card(claim["method"])[0].name, []).append(f"not measured yet: {claim['claim']}")
    return {name: "<br>".join(texts) for name, texts in lines.items()}


def read_evidence() -> dict[str, Any] | None:
    path = ROOT / "docs" / "evidence.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' hook: adds the pages."""
    from mkdocs.structure.files import File

    links = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)"}
    links["](LICENSE)"] = "](https://www.apache.org/licenses/LICENSE-2.0)"

    def from_root(name: str) -> str:
        text = (ROOT / name).read_text("utf-8")
        for old, new in links.items():
            text = text.replace(old, new)
        return text

    pages = {
        "index.md": from_root("README.md"),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "changelog.md": from_root("CHANGELOG.md"),
        "methods.md": methods_page(read_evidence()),
        "compared.md": compared_page(read_evidence()),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
