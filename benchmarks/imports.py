"""Start-up: what `import fewstep` and `fewstep --help` cost, medians of fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

CASES = {
    "python -c pass": ["-c", "pass"],
    "import fewstep": ["-c", "import fewstep"],
    "fewstep --help": ["-m", "fewstep", "--help"],
    "import torch": ["-c", "import torch"],
    "fewstep.load('digits') and 64 samples at 8": [
        "-c",
        "import fewstep as fs; fs.sample(fs.load('digits'), 64, steps=8)",
    ],
}


def measure(repeats: int = 5) -> list[dict[str, Any]]:
    rows = []
    for name, arguments in CASES.items():
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - begin)
        rows.append({"case": name, "seconds": statistics.median(times), "best": min(times)})
    return rows
