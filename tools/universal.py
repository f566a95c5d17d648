"""Makes `fewstep/sampling/universal.json` and judges it.

`python tools/universal.py fit mild steep ...` fits the rows of these spectra (all of them by default) on the zoo's
learning problems; `--counts 5 8` fits those numbers of evaluations alone. What is there already is where a fit starts.
About two hours of one core for everything.

`python tools/universal.py judge` measures them beside hand-made plans on all problems, with noises of their own, and on
small networks that it trains first (tools/trained.py), and writes docs/universal.json; `leave --counts 5 8` fits
without one family at a time and judges by that one.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.core.files import write
from fewstep.sampling.universal import TABLES

if TYPE_CHECKING:
    from fewstep.searching.joint import Joint

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "universal.json"
SPECTRA = ("small", "mild", "steep", "late", "mild, guided", "steep, guided", "late, guided")
COUNTS = (*range(1, 13), 15, 20)
NOISES, LARGE_NOISES, LARGE = 16, 8, 1000  # for samples of more than LARGE numbers
WEIGHTS = {"networks": 4.0, "uneven mixtures": 5.0}  # of which there are few, beside mixtures
LATE, LATE_BEGINS = "late", -2.68  # log-SNR relative to the data
MANY = 6  # evaluations, above which a fit has three starts: the best known, a shorter row, and the best made by hand
# Where a solver made by hand measured better: on networks, closed forms of photographs, or (small) narrow mixtures.
WORSE = (
    ("small", 20), ("mild", 15), ("mild", 20), ("steep", 1), ("steep", 10), ("steep", 11), ("steep", 12), ("steep", 15),
    ("steep", 20), ("late", 1),
)  # fmt: skip
PLAIN = 4  # every so manieth problem without guidance is in the fit for guided models
GUIDED_COUNTS = range(2, 11)  # with more evaluations the rows without guidance serve
BANDS = {9: 6, 13: 10}  # from this many evaluations on, so many weights a row


def problems(spectra: set[str], judging: bool, left_out: str = "", first: int = 0) -> dict[str, list[Joint]]:
    """The zoo's problems by spectrum, solved; `first` is the first noise. "late" stands for all but the small ones, on
    a process that begins as late as Stable Diffusion's."""
    from trained import trained

    from fewstep.processes.ve import EDM
    from fewstep.sampling.auto import data_std, spectrum
    from fewstep.searching.joint import joint
    from fewstep.searching.zoo import zoo

    found: dict[str, list[Joint]] = {}
    for species in [*zoo(), *trained()]:
        if species.judging != judging or species.family == left_out:
            continue
        model = species.make()
        kind = spectrum(model)
        if LATE in spectra and kind != "small":
            kind = kind.replace("mild", LATE).replace("steep", LATE)
            model.process = EDM(0.002, math.exp(-LATE_BEGINS) * data_std(model))
        if not spectra & {kind, f"{kind}, guided"}:
            continue
        n = LARGE_NOISES if math.prod(model.shape or ()) > LARGE else NOISES
        solved = joint(species.name, species.family, model, data_std(model), n, first=first)
        found.setdefault(kind, []).append(dataclasses.replace(solved, weight=WEIGHTS.get(species.family, 1.0)))
    return found


def read() -> dict[str, dict[str, Any]]:
    return dict(json.loads(TABLES.read_text("utf-8"))["rows"]) if TABLES.exists() else {}


def keep(spectrum: str, n: int, row: Any) -> None:
    """Put a row into the file."""

    def short(values: Any) -> Any:
        return [short(v) for v in values] if isinstance(values, tuple) else round(values, 6)

    with open(TABLES.with_suffix(".lock"), "w") as lock:  # several may fit at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        _keep(spectrum, n, {"log_snr": short(row.log_snr), "carry": short(row.carry), "mix": short(row.mix)})
    TABLES.with_suffix(".lock").unlink(missing_ok=True)


def _keep(spectrum: str, n: int, row: dict[str, Any]) -> None:
    known = read()
    by_count = known.setdefault(spectrum, {})
    by_count[str(n)] = row
    ordered = {s: dict(sorted(known[s].items(), key=lambda item: int(item[0]))) for s in SPECTRA if s in known}
    text = json.dumps({"version": 1, "rows": ordered}, separators=(",", ":"))
    write(TABLES, text.replace('{"log_snr"', '\n{"log_snr"') + "\n")


def fit_one(
    n: int, learned_from: list[Joint], iterations: int, starts: list[Any], low: float = -5.0
) -> tuple[Any, float]:
    import numpy as np

    from fewstep.searching.joint import Form, fit, objective

    band = next((band for least, band in sorted(BANDS.items(), reverse=True) if n >= least), None)
    form = Form(n, band, low)
    vectors = [form.start(), form.start(-3.3, 2.0), form.start(-2.2, 3.0)]
    vectors += [form.longer(start) for start in starts]
    hand = len(vectors)
    vectors += [form.vector(row) for row in by_hand(n)]
    vectors = [form.clamp(vector) for vector in vectors]
    values = objective(form, learned_from, np.stack(vectors))
    # There are several minima; with few evaluations a fit is cheap.
    shorter = [3 + k for k, start in enumerate(starts) if len(start.log_snr) < n][:1]
    if n > MANY:
        best = [np.argmin(values[:hand]), *shorter, hand + np.argmin(values[hand:])]
    else:
        best = [*np.argsort(values)[:2], 0, 1]
    found = [fit(form, learned_from, vectors[i], iterations) for i in dict.fromkeys(map(int, best))]
    theta, value = min(found, key=lambda pair: pair[1])
    return form.row(theta), value


def by_hand(n: int) -> list[Any]:
    """Solvers of order 3 on equal steps in log-SNR, then straight to the end, as rows."""
    import numpy as np

    from fewstep.sampling.build import fixed_plan
    from fewstep.searching.joint import Form
    from fewstep.searching.learn import Learner
    from fewstep.searching.zoo import CLOCK

    found: list[Any] = []
    if n < 4:
        return found
    for last in (3.0, 4.0, 5.0):
        times = [*(CLOCK.time(float(v)) for v in np.linspace(-4.3, last, n)), 0.0]
        for solver in ("dpmpp-3m", "unipc-2"):
            plan = fixed_plan(CLOCK, solver, timesteps=times)
            if plan.nfe == n:
                theta = Learner(CLOCK, plan).initial
                mix = np.zeros((n, n))
                mix[np.tril_indices(n)] = theta[2 * n + 1 :]
                rows = tuple(tuple(map(float, mix[i, : i + 1])) for i in range(n))
                found.append(Form(n).row(np.concatenate([theta[:n], theta[n : 2 * n], np.zeros(n * (n - 1) // 2)])))
                found[-1] = type(found[-1])(found[-1].log_snr, found[-1].carry, rows)
    return found


def learned_from(found: dict[str, list[Joint]], spectrum: str) -> list[Joint]:
    plain = spectrum.removesuffix(", guided")
    if plain == spectrum:
        return found[spectrum]
    return found[spectrum] + [dataclasses.replace(problem, weight=1.0) for problem in found[plain][::PLAIN]]


def fit_all(spectra: list[str], counts: list[int], iterations: int) -> None:
    from fewstep.sampling.universal import rows

    assert LATE not in {s.removesuffix(", guided") for s in spectra} or all(LATE in s for s in spectra), (
        "fit late ones alone"
    )
    found = problems({s.removesuffix(", guided") for s in spectra} | set(spectra), judging=False)
    for n in counts:
        for spectrum in spectra:
            if ("guided" in spectrum and n not in GUIDED_COUNTS) or (spectrum, n) in WORSE:
                continue
            rows.cache_clear()
            known = rows() if TABLES.exists() else {}
            mine = known.get(spectrum, {})
            starts = [mine[m] for m in (n, n - 1, n - 3, n - 5) if m in mine]
            starts += [known[s][n] for s in SPECTRA if s != spectrum and n in known.get(s, {})]
            begin = time.perf_counter()
            low = LATE_BEGINS if LATE in spectrum else -5.0
            row, value = fit_one(n, learned_from(found, spectrum), iterations, starts, low)
            keep(spectrum, n, row)
            print(f"{spectrum}, {n}: {value:.3f} in {time.perf_counter() - begin:.0f} s", flush=True)


FRESH = 10_000  # the first noise of a judgement
FEWEST = 64  # noises to judge on, where an evaluation is cheap
BESIDE = (
    ("dpmpp-3m", "log-snr"), ("dpmpp-2m", "log-snr"), ("unipc-2", "log-snr"), ("unipc-3", "log-snr"),
    ("dpmpp-2m", "short"), ("vab-3", "short"), ("dpmpp-2m", "karras"), ("unipc-2", "karras"), ("unipc-3", "karras"),
    ("dpmpp-3m", "karras"), ("vab-3", "karras"), ("deis-3", "quadratic"), ("ddim", "log-snr"), ("ab-4", "admissible"),
)  # fmt: skip
JUDGED = (4, 5, 6, 8, 10, 12, 15, 20, 30)


def judge(counts: list[int], spectra: list[str], known: list[dict[str, Any]]) -> dict[str, Any]:
    """The errors of universal and hand-made plans on each problem; `known` stays for other spectra and counts."""
    from trained import FAMILY, trained

    from fewstep.sampling.auto import data_std, spectrum
    from fewstep.sampling.build import fixed_plan
    from fewstep.sampling.sample import choose_plan
    from fewstep.sampling.universal import rows
    from fewstep.searching.candidates import score
    from fewstep.searching.joint import joint
    from fewstep.searching.zoo import zoo

    found = []
    for species in [*zoo(), *trained()]:
        model = species.make()
        kind, std = spectrum(model), data_std(model)
        asked = counts if not spectra or kind in spectra else []
        found += [row for row in known if row["problem"] == species.name and row["evaluations"] not in asked]
        if not asked:
            continue
        slow = math.prod(model.shape or ()) > LARGE and species.family in ("networks", "guided", FAMILY)
        n = NOISES if slow else FEWEST  # a closed form of a few pictures falls to a wrong one now and then
        solved = joint(species.name, species.family, model, std, n, first=FRESH).problem
        for count in counts:
            errors: dict[str, float] = {"auto": score(choose_plan(model, count), model, solved)}
            cases = [(f"{solver} on {rule}", solver, {"timesteps": rule}) for solver, rule in BESIDE]
            for own in dict.fromkeys((kind, "small", "mild", "steep")):
                if count in rows().get(own, {}):
                    cases.append((own, "universal", {"spectrum": own, "data_std": std}))
            for name, solver, options in cases:
                try:
                    made = fixed_plan(model.process, solver, nfe=count, **options)
                except ValueError:
                    continue
                errors[name] = float(f"{score(made, model, solved):.4g}")
            found.append(
                {"problem": species.name, "family": species.family, "judging": species.judging, "spectrum": kind}
                | {"evaluations": count, "errors": errors}
            )
        print(species.name, flush=True)
    order = {species.name: i for i, species in enumerate([*zoo(), *trained()])}
    found.sort(key=lambda row: (order[row["problem"]], row["evaluations"]))
    return {"noises": NOISES, "rows": found}


def leave(counts: list[int]) -> list[dict[str, Any]]:
    """Rows fitted without one family, judged by that family: the figure that says how far they carry."""
    import numpy as np

    from fewstep.sampling.universal import rows
    from fewstep.searching.joint import Form, errors, objective

    plain = SPECTRA[1:3]
    train, fresh = (problems(set(plain), judging=False, first=first) for first in (0, FRESH))
    found = []
    for spectrum in plain:
        for family in sorted({problem.family for problem in train[spectrum]}):
            rest = [problem for problem in train[spectrum] if problem.family != family]
            left = [problem for problem in fresh[spectrum] if problem.family == family]
            if not rest or family == "guided":
                continue
            for n in counts:
                form = Form(n)
                begun = [row for m, row in rows()["steep" if spectrum == "mild" else "mild"].items() if m == n]
                row, _ = fit_one(n, rest, 15, begun)
                whole = form.vector(rows()[spectrum][n])
                entry: dict[str, Any] = {
                    "spectrum": spectrum,
                    "family": family,
                    "evaluations": n,
                    "problems": len(left),
                }
                entry["without"] = float(np.exp(objective(form, left, form.vector(row)[None])[0]))
                entry["with"] = float(np.exp(objective(form, left, whole[None])[0]))
                entry["each"] = {p.name: float(errors(form, p, form.vector(row)[None])[0]) for p in left}
                found.append(entry)
                print(entry, flush=True)
    return found


OLD = "dpmpp-3m on log-snr"  # the default before
SHOWN = (4, 5, 6, 8, 10, 15, 20)


def _mean(values: list[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def families(figures: dict[str, Any], judging: bool) -> dict[tuple[str, int], dict[str, float]]:
    """By family and number of evaluations, geometric means over its problems: of what is taken where nothing is named,
    of the old default, and of the best hand-made plan chosen for each problem afterwards."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in figures["rows"]:
        if row["judging"] == judging:
            groups.setdefault((row["family"], row["evaluations"]), []).append(row)
    found = {}
    for key, rows in groups.items():
        hand = [[e for name, e in row["errors"].items() if " on " in name and math.isfinite(e)] for row in rows]
        found[key] = {
            "auto": _mean([row["errors"]["auto"] for row in rows]),
            "old": _mean([row["errors"][OLD] for row in rows]),
            "hand": _mean([min(errors) for errors in hand]),
            "problems": len(rows),
        }
    return found


def lines(figures: dict[str, Any]) -> dict[str, list[str]]:
    """The tables of docs/choose.md."""
    counts = [n for n in SHOWN if n in {row["evaluations"] for row in figures["rows"]}]
    made = {}
    for name, judging in (("auto judging", True), ("auto learning", False)):
        found = families(figures, judging)
        rows = ["| family | " + " | ".join(f"{n}" for n in counts) + " |", "| --- " * (len(counts) + 1) + "|"]
        for family in dict.fromkeys(family for family, _ in found):
            cells = [found[family, n] for n in counts]
            texts = (f"{c['auto']:.3g} ({c['old']:.3g}, {c['hand']:.3g})" for c in cells)
            rows.append(f"| {family}, {cells[0]['problems']:.0f} | " + " | ".join(texts) + " |")
        made[name] = rows
    rows = ["| left out | evaluations | fitted without it | fitted with it |", "| --- " * 4 + "|"]
    for entry in figures.get("left_out", ()):
        head = f"{entry['family']}, {entry['problems']} {entry['spectrum']}"
        rows.append(f"| {head} | {entry['evaluations']} | {entry['without']:.3g} | {entry['with']:.3g} |")
    return made | {"auto left out": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit")
    fitting.add_argument("spectra", nargs="*", default=list(SPECTRA))
    fitting.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    fitting.add_argument("--iterations", type=int, default=15)
    judging = commands.add_parser("judge")
    judging.add_argument("spectra", nargs="*", help="problems of these spectra alone; all by default")
    judging.add_argument("--counts", nargs="+", type=int, default=list(JUDGED))
    leaving = commands.add_parser("leave")
    leaving.add_argument("--counts", nargs="+", type=int, default=[5, 8])
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    if given.command == "fit":
        fit_all(given.spectra, given.counts, given.iterations)
        return
    known = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    known |= (
        judge(given.counts, given.spectra, known.get("rows", []))
        if given.command == "judge"
        else {"left_out": leave(given.counts)}
    )
    write(FIGURES, json.dumps(known, separators=(",", ":")).replace('{"problem"', '\n{"problem"') + "\n")


if __name__ == "__main__":
    main()
