"""`python -m benchmarks.peers [accuracy caching distance ...]`: measure beside the peers, and rewrite these.

Figures go to benchmarks/results/peers_*.json, one row a case, and to sections of benchmarks/RESULTS.md. `--quick`, a
trial with few budgets and rounds, only prints. `make peers` makes the environment this needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

from benchmarks.__main__ import HERE, machine, place
from benchmarks.peers import accuracy, caching, distance, overhead, posterior, steering
from fewstep.report.files import write_text

QUICK_NFES = (5, 10)
ROUNDS, QUICK_ROUNDS = 30, 4
PARTS = {
    "accuracy": accuracy,
    "caching": caching,
    "distance": distance,
    "overhead": overhead,
    "posterior": posterior,
    "steering": steering,
}
PACKAGES = ("diffusers", "k-diffusion", "azula", "deepinv", "torchdiffeq", "torchsde")


def versions() -> str:
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def keep(name: str, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the figures, a row a line."""
    head = json.dumps({"machine": machine(), "versions": versions(), **about}, allow_nan=False)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    write_text(HERE / "results" / f"peers_{name}.json", f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="fewstep beside its peers")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="few budgets and rounds; prints, writes nothing")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="processes (overhead: always one)")
    given = parser.parse_args(arguments)
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")  # the peers' own
    (HERE / "results").mkdir(exist_ok=True)
    nfes = QUICK_NFES if given.quick else accuracy.NFES
    for name in given.parts or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        part: Any = PARTS[name]
        if name == "overhead":
            about, rows = part.measure(QUICK_ROUNDS if given.quick else ROUNDS)
        else:
            about, rows = part.measure(nfes, given.workers)
        about["seconds"] = round(time.perf_counter() - begin)
        text = f"{part.render(about, rows)}\n\n{machine()}; {versions()}; {about['seconds']} s."
        print(text, end="\n\n")
        if not given.quick:
            keep(name, about, rows)
            place(f"peers_{name}", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
