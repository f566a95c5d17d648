"""`python -m benchmarks [NAME ...]`: measure, and rewrite those sections of RESULTS.md; without a name, all of them.

Each section of RESULTS.md stands between two markers and is written from the run's own figures, which are also kept as
JSON in benchmarks/results/.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    diffusers_overhead,
    distilling,
    executors,
    imports,
    learned,
    overhead,
    posterior,
    restoration,
    restoring,
    serving,
    simulator,
    stochastic,
    students,
    training,
)
from benchmarks.table import table
from fewstep.core.words import number_of
from fewstep.report.files import write_json, write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"


def _overhead(rows: list[dict[str, Any]]) -> str:
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["solver"], {})[row["shape"]] = row
    shapes = list(overhead.SHAPES)
    columns = ["solver", "evaluations"] + [f"{shape}: us, times floor" for shape in shapes]
    cells = [
        [name, str(by_shape[shapes[0]]["evaluations"])]
        + [f"{by_shape[s]['us_per_evaluation']:.1f}, {by_shape[s]['times_floor']:.2f}" for s in shapes]
        for name, by_shape in by.items()
    ]
    return (
        "## Time of the loop beyond the network\n\nMicroseconds an evaluation (median) with a null network that"
        " predicts eps, 20 steps, one thread; and the ratio to a loop of DPM-Solver++ 2M written by"
        " hand, in the same run.\n\n" + table(columns, cells)
    )


def _stochastic(rows: list[dict[str, Any]]) -> str:
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["loop"], {})[row["shape"]] = row
    cells = []
    for name, shapes in by.items():
        line = [name, stochastic.TWINS.get(name, "")]
        for shape in overhead.SHAPES:
            row = shapes[shape]
            twin = f"{row['times_twin']:.1f}" if row["times_twin"] else ""
            line += [f"{row['us']:.0f}", f"{row['times_floor']:.1f}", twin]
        cells.append(line)
    columns = ["loop", "twin"]
    columns += [c for shape in overhead.SHAPES for c in (f"{shape}: us", "times floor", "times twin")]
    return (
        "## What noise costs\n\nThe least microseconds of CPU time a step with a null network, 20 steps, one thread,"
        f" over {stochastic.ROUNDS} interleaved rounds; over the loop of second order by hand, and over the"
        " deterministic twin of the same structure. Other work of the machine slows memory and caches, and so only"
        " adds to a time. By hand with randn is that loop with one call of torch.randn_like a step, which every"
        " stochastic solver of k-diffusion makes at least.\n\n" + table(columns, cells)
    )


def _imports(rows: list[dict[str, Any]]) -> str:
    cells = [[row["case"], f"{row['seconds']:.2f}"] for row in rows]
    return "## Start-up\n\nSeconds of a fresh process, median of five.\n\n" + table(["case", "seconds"], cells)


def _learned(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["process"],
            str(row["nfe"]),
            f"{row['hand_made_error']:.4f} ({row['hand_made']})",
            f"{row['learned_error']:.4f}",
            f"{row['hand_made_error'] / row['learned_error']:.1f}",
            f"{row['learn_seconds']:.0f}",
        ]
        for row in rows
    ]
    return (
        "## Learned plans on the exact mixture\n\nRelative endpoint error on 512 noises that neither search nor"
        " learning has seen; two dimensions, eight components, the exact denoiser in float64, one thread.\n\n"
        + table(["process", "NFE", "best hand-made plan", "learned", "ratio", "seconds to learn"], cells)
    )


def _executors(rows: list[dict[str, Any]]) -> str:
    cells = [[row["case"], f"{row['figure']:.3g}", row["unit"]] for row in rows]
    return "## Executors\n\nOn the embedded digits, one thread, medians.\n\n" + table(["case", "", "unit"], cells)


def _training(rows: list[dict[str, Any]]) -> str:
    cells = [
        [row["case"], f"{row['trainer_ms']:.1f}", f"{row['bare_ms']:.1f}", f"{row['ratio']:.3f}"]
        for row in rows
        if "ratio" in row
    ]
    grown = next(row for row in rows if row["case"] == "growth")
    return (
        "## The trainer beside a bare loop\n\nMilliseconds a step on the digits: the trainer (its own generators,"
        " records by noise level, condition dropout, moving average) and a loop written by hand with the same network,"
        " loss, optimiser and average; medians of alternating rounds, one thread.\n\n"
        + table(["network", "trainer", "bare loop", "ratio"], cells)
        + f"\n\nResident memory after 200 steps {grown['after_200_mb']:.0f} MB, after {grown['steps']}"
        f" {grown['after_all_mb']:.0f} MB."
    )


def _restoration(rows: list[dict[str, Any]]) -> str:
    parts = [
        "## Restoration by bridges\n\nPSNR in dB on 128 held-out pictures (digits of 8x8; grey patches of 24x24 from"
        " photographs not trained on), one sample each, and in brackets the seconds of one core for all of them. Every"
        " arm is the same small unet, predicting x0 with the preconditioning of its class, trained for"
        f" {restoration.TRAINED}; the conditional diffusion is EDM from pure noise with the degraded picture beside the"
        " state. One evaluation is plain regression from the start of the run. PSNR is best for the mean of all"
        " pictures that the degraded one allows, which is what one evaluation aims at; more of them draw one such"
        " picture. Where a solver cannot"
        " make exactly so many evaluations, `n` says how many. The training is short: on photographs that are"
        " blurred but hardly noisy all samples of five evaluations and more stay below the degraded pictures' own PSNR,"
        " and are compared with each other only."
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        pairs = list(dict.fromkeys((row["arm"], row["solver"]) for row in own if "solver" in row))
        cells = []
        for arm, solver in pairs:
            found = [row for row in own if (row["arm"], row.get("solver")) == (arm, solver)]
            cells.append([arm, solver] + [_restored(row) for row in found])
        degraded = next(row["psnr"] for row in own if row["arm"] == "degraded")
        columns = ["", "solver"] + [number_of(nfe, "evaluation") for nfe in restoration.NFES]
        parts.append(f"{task.capitalize()}; the degraded pictures have {degraded:.2f} dB.\n\n{table(columns, cells)}")
    parts.append(
        "Rows of docs/images/restoration.png: degraded photographs (noise, then blur),"
        f" {', '.join(restoration.ARMS)} at {restoration.SHOWN_NFE} evaluations of {restoration.SHOWN_SOLVER},"
        " and the truth."
    )
    return "\n\n".join(parts)


def _restored(row: dict[str, Any]) -> str:
    fewer = f", n = {row['nfe']}" if row["nfe"] != row["asked"] else ""
    return f"{row['psnr']:.2f} ({row['seconds']:.2g} s{fewer})"


def _diffusers(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["loop"],
            f"{row['seconds']:.2f}",
            f"{row['outside_ms']:.1f}",
            f"{row['outside_percent']:.2f} %",
            f"{row['peak_mb']:.1f}",
        ]
        for row in rows
    ]
    return (
        "## Beside diffusers\n\nUNet2DModel 32x32, batch 16, 20 steps of DPM-Solver++ 2M, float32, one thread:"
        f" medians of {rows[0]['rounds']} rounds in which the three take turns. Memory is the growth of a fresh"
        " process's peak over its first call, most of it the network's own.\n\n"
        + table(["loop", "seconds a call", "ms outside the network", "share", "peak memory, MB"], cells)
    )


def _serving(rows: list[dict[str, Any]]) -> str:
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["part"], []).append(row)
    ways = list(serving.WAYS)
    full = {(row["model"], row["way"]): row["throughput"] for row in by["full"]}
    cells = [[f"{name}: all at once"] + [f"{full[name, way]:.1f} a second" for way in ways] for name in serving.MODELS]
    loads = {(row["model"], row["load"], row["way"]): row for row in by["load"]}
    for name in serving.MODELS:
        for share in serving.LOADS:
            found = [loads[name, share, way] for way in ways]
            cells.append([f"{name}: {100 * share:.0f} % of capacity"] + [_latency(row) for row in found])
    beyond = [
        f"`{row['model']}` at {row['load']:g} times its capacity of {row['capacity']:.1f} a second, {serving.QUEUE} in"
        f" the queue: {row['throughput']:.1f} a second are done, {row['refused']} of {row['requests']} are refused at"
        f" once, the 95th percentile of the others is {row['p95']:.2f} s"
        for row in by["beyond"]
    ]
    costs = {(row["requests"], row["case"]): row["us"] for row in by["overhead"]}
    over = [[str(n), f"{costs[n, 'run_mixed']:.0f}", f"{costs[n, 'engine']:.0f}"] for n in serving.COUNTS]
    (web,) = by["http"]
    said = ", ".join(f"{count} of {code}" for code, count in sorted(web["statuses"].items()))
    return (
        "## Serving\n\nRequests of one picture arrive as a Poisson process for"
        f" {serving.SECONDS:.0f} s; each takes {', '.join(map(str, serving.STEPS))} steps of dpmpp-2m at guidance 1 or"
        f" 2, all equally often. Calls of at most {serving.BATCH} samples, the network in one thread, the same arrivals"
        " for all. Seconds from arrival to samples: median, 95th and 99th percentile. Step-level: the engine, where"
        " requests join between calls. Request-level: the first that waits and all others of its plan, to their end."
        " Capacity is what the engine draws when all are there at once; a way that cannot keep up leaves some"
        f" unfinished {serving.SECONDS:.0f} s after the last arrival.\n\n"
        + table(["", *ways], cells)
        + "\n\nBeyond capacity: "
        + "; ".join(beyond)
        + ".\n\nMicroseconds of a call beyond a network that answers at once, which serves so many requests of one"
        " sample:\n\n" + table(["requests", "run_mixed", "engine"], over) + "\n\nOver HTTP:"
        f" {web['requests']} requests of one digit in 4 steps by {web['connections']} connections to `fewstep serve"
        f" digits --exact` with room for 48: {web['seconds']:.0f} s, answers {said}; {web['lost']} lost,"
        f" {web['doubled']} doubled, {web['wrong']} of {web['checked']} looked at differ from the picture that"
        f" `fs.sample` draws. Resident memory grows by {web['mb_per_1000_requests']:.2f} MB per 1000 requests"
        f" ({web['memory_mb'][len(web['memory_mb']) // 5]:.0f} MB after a fifth of them,"
        f" {web['memory_mb'][-1]:.0f} MB at the end)."
    )


def _latency(row: dict[str, Any]) -> str:
    left = f", {row['unfinished']} of {row['requests']} unfinished" if row["unfinished"] else ""
    return f"{row['p50']:.2f}, {row['p95']:.2f}, {row['p99']:.2f} s{left}"


SECTIONS: dict[str, tuple[Callable[[], list[dict[str, Any]]], Callable[[list[dict[str, Any]]], str]]] = {
    "overhead": (overhead.measure, _overhead),
    "stochastic": (stochastic.measure, _stochastic),
    "imports": (imports.measure, _imports),
    "learned": (learned.measure, _learned),
    "executors": (executors.measure, _executors),
    "training": (training.measure, _training),
    "restoration": (restoration.measure, _restoration),
    "posterior": (posterior.measure, posterior.render),
    "restoring": (restoring.measure, restoring.render),
    "serving": (serving.measure, _serving),
    "diffusers": (diffusers_overhead.measure, _diffusers),
    "simulator": (simulator.measure, simulator.render),
    "students": (students.measure, students.render),
    "distilling": (distilling.measure, distilling.render),
}


def place(name: str, text: str) -> None:
    """Put a section into RESULTS.md, in place of its former self or at the end."""
    old = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Results\n"
    block = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.S)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n"
    write_text(RESULTS, new)


def _cpu() -> str:
    """The CPU's name where the system tells it, and its architecture."""
    try:
        named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return f"{named[1]}, {platform.machine()}" if named else platform.machine() + " CPU"


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}, {date.today().isoformat()}"


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    (HERE / "results").mkdir(exist_ok=True)
    for name in names or list(SECTIONS):
        measure, render = SECTIONS[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = measure()
        write_json(HERE / "results" / f"{name}.json", {"machine": machine(), "rows": rows})
        text = render(rows) + f"\n\n{machine()}."
        place(name, text)
        print(text, end="\n\n")
        print(json.dumps({"section": name, "rows": len(rows)}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
