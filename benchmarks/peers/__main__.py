"""`python -m benchmarks.peers ACCURACY.json`: summarise a run of the harness, peers and fewstep together.

Writes the best of each per path and number of evaluations into benchmarks/RESULTS.md and benchmarks/results/peers.json.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import HERE, machine, place, table
from fewstep.report.files import write_json


def best(rows: list[dict[str, Any]], ours: bool) -> dict[str, Any] | None:
    kept = [r for r in rows if (r["peer"] == "fewstep") == ours and math.isfinite(r.get("err", math.nan))]
    return min(kept, key=lambda r: r["err"], default=None)


def summarise(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for path in dict.fromkeys(r["path"] for r in found["det"]):
        for nfe in found["nfes"]:
            here = [r for r in found["det"] if r["path"] == path and r["budget"] == nfe]
            own, peer = best(here, True), best(here, False)
            if own is None or peer is None:
                continue
            rows.append(
                {
                    "path": path,
                    "nfe": nfe,
                    "fewstep": own["err"],
                    "fewstep_solver": f"{own['solver']} [{own['grid']}]",
                    "peer": peer["err"],
                    "peer_solver": f"{peer['peer']} {peer['solver']} [{peer['grid']}]",
                    "ratio": own["err"] / peer["err"],
                }
            )
    return rows


def main(path: str) -> None:
    rows = summarise(json.loads(Path(path).read_text("utf-8")))
    write_json(HERE / "results" / "peers.json", {"machine": machine(), "rows": rows})
    cells = [
        [
            r["path"],
            str(r["nfe"]),
            f"{r['fewstep']:.2e} {r['fewstep_solver']}",
            f"{r['peer']:.2e} {r['peer_solver']}",
            f"{r['ratio']:.2f}",
        ]
        for r in rows
    ]
    text = (
        "## Best hand-made solver beside the best peer\n\nRelative endpoint error on the eight-component mixture, exact"
        " denoiser, the best of every solver and schedule of each side, all in one run. `+0` ends with a jump to sigma"
        " = 0.\n\n" + table(["path", "NFE", "fewstep", "best peer", "ratio"], cells) + f"\n\n{machine()}."
    )
    place("peers", text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
