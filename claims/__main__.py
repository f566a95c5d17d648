"""`python -m claims [WORD ...]`: run the claims and write docs/evidence.json.

With words, only the claims run whose method or file contains one of them; the others' figures stay as they were
written. The word `tables` runs the comparison of solvers, `league` that of solvers and searches at few evaluations;
without words everything runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from claims import tables
from claims.claim import FOLDER, Claim, collect
from fewstep.report.files import write_json

EVIDENCE = FOLDER.parent / "docs" / "evidence.json"
TABLE, LEAGUE_TABLE = "endpoint", "league"
LONG = 10.0  # seconds of a claim after which the evidence is written at once, so that a run that is ended keeps it


def measure(claim: Claim) -> dict[str, Any]:
    """Run a claim; its entry in the evidence."""
    begin = time.perf_counter()
    outcome = claim.run(claim.seed)
    seconds = time.perf_counter() - begin
    return {
        "method": claim.method,
        "claim": claim.sentence,
        "file": claim.file,
        "ours": outcome.ours,
        "theirs": outcome.theirs,
        "against": outcome.against,
        "better": outcome.better,
        "holds": outcome.holds,
        "unit": outcome.unit,
        "conditions": outcome.conditions,
        "seed": claim.seed,
        **({"spread": list(outcome.spread)} if outcome.spread else {}),
        "quick": claim.quick,
        "seconds": round(seconds, 2),
    }


def read(path: Path = EVIDENCE) -> dict[str, Any]:
    """The evidence as written last; empty where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"claims": [], "tables": {}}


def merged(entries: list[dict[str, Any]], before: dict[str, Any]) -> list[dict[str, Any]]:
    """The fresh entries, and the old ones of the claims that did not run; those of claims that are gone are dropped."""
    named = {(entry["method"], entry["claim"]): entry for entry in [*before["claims"], *entries]}
    every = [(claim.method, claim.sentence) for claim in collect()]
    return [named[name] for name in every if name in named]


def pending(entries: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The claims that no entry is of: not measured yet, and said to be so."""
    named = {(entry["method"], entry["claim"]) for entry in entries}
    missing = [claim for claim in collect() if (claim.method, claim.sentence) not in named]
    return [{"method": claim.method, "claim": claim.sentence, "file": claim.file} for claim in missing]


def record(entries: list[dict[str, Any]], made: dict[str, Any], path: Path = EVIDENCE) -> None:
    """Write the evidence in one move: what is fresh, and all else as the file has it by now."""
    before = read(path)
    about = {
        "problem": "8-component mixture",
        "noises": tables.NOISES,
        "seed": tables.SEED,
        "rules": list(tables.RULES),
        "figure": "relative end point error, the best rule's",
    }
    claims = merged(entries, before)
    evidence = {
        "claims": claims,
        "pending": pending(claims),
        "tables": before["tables"] | made,
        "about_tables": {
            TABLE: about,
            LEAGUE_TABLE: about | {"problem": "in the table", "search_budget": [tables.BUDGET, tables.DEAR_BUDGET]},
        },
    }
    write_json(path, evidence)


def _show(entry: dict[str, Any]) -> str:
    mark = "[green]holds[/]" if entry["holds"] else "[red]fails[/]"
    sign = "<" if entry["better"] == "low" else ">"
    figures = f"{entry['ours']:.3g} {sign if entry['holds'] else 'not ' + sign} {entry['theirs']:.3g}"
    head = f"{mark}  [bold]{entry['method']}[/] {entry['claim']}"
    return f"{head}: {figures} ({entry['against']}), {entry['seconds']:.1f} s"


def main(arguments: list[str] | None = None, path: Path = EVIDENCE) -> None:
    """Run what was asked for, show it, and write the evidence: after each long claim, and at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    parser = argparse.ArgumentParser(prog="python -m claims", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="a part of a method's name or file, or 'tables'")
    parser.add_argument("--json", action="store_true", help="print the figures of this run as JSON")
    options = parser.parse_args(arguments)
    words = [word for word in options.words if word not in ("tables", LEAGUE_TABLE)]
    chosen = collect(words) if words or not options.words else []
    table = "tables" in options.words or not options.words
    ranked = LEAGUE_TABLE in options.words or not options.words
    if not chosen and not table and not ranked:
        parser.error(f"no claim is about {' or '.join(repr(word) for word in words)}")

    torch.set_num_threads(1)  # sums in one order, so that figures repeat
    begin = time.perf_counter()
    entries: list[dict[str, Any]] = []
    broken: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("claims", total=len(chosen), visible=bool(chosen))
        for claim in chosen:
            progress.update(task, description=claim.name if len(claim.name) < 60 else claim.name[:59] + "…")
            try:
                entries.append(measure(claim))
                if entries[-1]["seconds"] > LONG:
                    record(entries, {}, path)
                console.print(_show(entries[-1]), highlight=False, soft_wrap=True)
            except Exception:  # hours of others are not lost for one that breaks
                broken.append(claim.name)
                console.print(f"[red]breaks[/] {claim.name}\n{traceback.format_exc()}", highlight=False)
            progress.advance(task)
        if table:
            task = progress.add_task("comparison of solvers", total=len(tables.PROCESSES) * len(tables.solvers()))
            for process, solver, row in tables.comparison():
                rows.setdefault(process, {})[solver] = row
                progress.advance(task)
        lists: dict[str, dict[str, list[dict[str, Any]]]] = {}
        if ranked:
            task = progress.add_task("league", total=3 * len(tables.LEAGUE) * len(tables.league_names()))
            for problem in tables.league_problems():
                for nfe in tables.LEAGUE:
                    found = []
                    for kind, name in tables.league_names():
                        progress.update(task, description=f"{problem.name}, {nfe}: {name}")
                        row = tables.league(problem, nfe, kind, name)
                        found += [row] if row is not None and math.isfinite(row["error"]) else []
                        progress.advance(task)
                    found.sort(key=lambda row: row["error"])
                    lists.setdefault(problem.name, {})[str(nfe)] = found
                    best = ", ".join(f"{row['name']} {row['error']:.3g}" for row in found[:5])
                    console.print(f"{problem.name}, {nfe} evaluations: {best}", highlight=False, soft_wrap=True)

    made = ({TABLE: rows} if table else {}) | ({LEAGUE_TABLE: lists} if ranked else {})
    record(entries, made, path)
    holding = sum(entry["holds"] for entry in entries)
    console.print(f"{holding} of {len(entries)} claims hold; {time.perf_counter() - begin:.0f} s; figures in {path}")
    if options.json:
        print(json.dumps({"claims": entries, "tables": made}, indent=2))
    if broken:
        sys.exit(f"{len(broken)} of {len(chosen)} claims broke, and keep the figures of before: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
