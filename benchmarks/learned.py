"""Learned plans on the exact mixture: error on held-out noises beside the best hand-made plan, per process and NFE."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.problems import mixture, processes
from fewstep.searching.candidates import hand_made, rank, score
from fewstep.searching.learn import learn
from fewstep.searching.reference import error_estimate, solve

NFES = (4, 5, 6, 8, 10)
TRAIN, HELD_OUT, TEST, REFERENCE_NFE = 1536, 256, 512, 200


def measure(nfes: tuple[int, ...] = NFES, seconds: float = 60.0) -> list[dict[str, Any]]:
    """One row a process and NFE; errors are relative to the exact end points, on noises that nothing has seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for name, process in processes().items():
            model = mixture(process)
            problem = solve(model, 0, 0, TRAIN + HELD_OUT + TEST, REFERENCE_NFE, torch.float64)
            error = error_estimate(model, problem, REFERENCE_NFE)
            train, held_out = problem.part(0, TRAIN), problem.part(TRAIN, TRAIN + HELD_OUT)
            test = problem.part(TRAIN + HELD_OUT, len(problem))
            for nfe in nfes:
                begin = time.perf_counter()
                candidates = rank(list(hand_made(process, nfe)), model, held_out)
                searched = time.perf_counter() - begin
                plan, figures = learn(model, candidates, train, held_out, seconds=seconds)
                assert plan is not None
                rows.append(
                    {
                        "process": name,
                        "nfe": nfe,
                        "hand_made": candidates[0].name,
                        "hand_made_error": score(candidates[0].plan, model, test),
                        "learned_error": score(plan, model, test),
                        "iterations": figures["iterations"],
                        "parameters": figures["parameters"],
                        "search_seconds": searched,
                        "learn_seconds": figures["seconds"],
                        "reference_error": error,
                    }
                )
    finally:
        torch.set_num_threads(threads)
    return rows
