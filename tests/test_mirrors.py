"""Every file of the package has a test: at the mirrored path, in a contract over its cards, or one named here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from contracts import (
    test_conditions,
    test_data,
    test_live,
    test_metrics,
    test_networks,
    test_operators,
    test_processes,
    test_restoration,
    test_sampling,
    test_saving,
    test_searches,
    test_trainers,
    test_wrappers,
)

from fewstep.core.methods import Method, card, methods

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "fewstep"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE and path.name != "__init__.py")

# Files that another test covers: where, and what it calls from the file: the module, a name that the file defines, or,
# for what is reached through others, the file's own name.
ELSEWHERE = {
    "acceleration/verdict.py": ("acceleration/test_pipeline.py", "verdict"),
    "caching/recipe.py": ("caching/test_common.py", "fewstep.caching.recipe"),
    "caching/calibrate.py": ("caching/test_magcache.py", "fewstep.caching.calibrate"),
    "cli/common.py": ("cli/test_sample_options.py", "fewstep.cli.common"),
    "cli/compare.py": ("cli/test_search_compare.py", "compare"),
    "cli/decode.py": ("cli/test_encode.py", "decode"),
    "cli/info.py": ("cli/test_methods_info.py", "info"),
    "cli/methods.py": ("cli/test_methods_info.py", "methods"),
    "cli/pictures.py": ("cli/test_sample_options.py", "fewstep.cli.pictures"),
    "cli/search.py": ("cli/test_search_compare.py", "search"),
    "core/config.py": ("contracts/test_saving.py", "fewstep.core.config"),
    "core/coordinates.py": ("denoisers/test_coordinates.py", "fewstep.core.coordinates"),
    "core/errors.py": ("core/test_methods.py", "suggest"),
    "core/facts.py": ("contracts/test_wrappers.py", "fewstep.core.facts"),
    "core/model.py": ("core/test_denoiser.py", "check_condition"),
    "core/ops.py": ("core/test_plan.py", "fewstep.core.ops"),
    "core/process.py": ("contracts/test_processes.py", "fewstep.core.process"),
    "core/program.py": ("contracts/test_sampling.py", "fewstep.core.program"),
    "core/record.py": ("core/test_plan.py", "fewstep.core.record"),
    "core/sampler.py": ("contracts/test_sampling.py", "stochastic"),
    "core/table.py": ("core/test_plan.py", "table"),
    "core/trace.py": ("core/test_plan.py", "fewstep.core.trace"),
    "core/unrolled.py": ("contracts/test_sampling.py", "fewstep.core.unrolled"),
    "data/captions.py": ("data/test_shapes.py", "fewstep.data.captions"),
    "data/open.py": ("contracts/test_data.py", "fewstep.data.open"),
    "data/spec.py": ("data/test_dataset.py", "fewstep.data.spec"),
    "data/shapes_render.py": ("data/test_shapes.py", "fewstep.data.shapes_render"),
    "denoisers/calibration.py": ("restoration/test_calibrated.py", "fewstep.denoisers.calibration"),
    "denoisers/conventions.py": ("denoisers/test_checks.py", "conventions"),
    "denoisers/detail.py": ("training/test_single_image.py", "detail"),
    "denoisers/restorer.py": ("contracts/test_saving.py", "fewstep.denoisers.restorer"),
    "guidance/guide.py": ("guidance/test_known.py", "guide"),
    "metrics/common.py": ("contracts/test_metrics.py", "fewstep.metrics.common"),
    "operators/covariance.py": ("operators/test_solve.py", "fewstep.operators.covariance"),
    "operators/krylov.py": ("operators/test_solve.py", "fewstep.operators.krylov"),
    "operators/operator.py": ("contracts/test_operators.py", "fewstep.operators.operator"),
    "operators/sparse.py": ("operators/test_projections.py", "fewstep.operators.sparse"),
    "operators/spectrum.py": ("operators/test_blur.py", "fewstep.operators.spectrum"),
    "processes/discrete.py": ("processes/test_processes.py", "fewstep.processes.discrete"),
    "processes/per_element.py": ("core/test_bands.py", "PerElement"),
    "processes/shifted.py": ("processes/test_processes.py", "Shifted"),
    "restoration/calibrate.py": ("restoration/test_calibrated.py", "calibrate"),
    "sampling/angle.py": ("sampling/test_adjoint.py", "fewstep.sampling.angle"),
    "sampling/checkpointed.py": ("sampling/test_adjoint.py", "fewstep.sampling.checkpointed"),
    "sampling/common.py": ("sampling/test_multistep.py", "fewstep.sampling.common"),
    "sampling/heavy_ball.py": ("sampling/test_corrections.py", "fewstep.sampling.heavy_ball"),
    "sampling/reversible.py": ("sampling/test_adjoint.py", "fewstep.sampling.reversible"),
    "sampling/time_shift.py": ("sampling/test_corrections.py", "fewstep.sampling.time_shift"),
    "report/compare.py": ("cli/test_search_compare.py", "compare"),
    "report/search.py": ("cli/test_search_compare.py", "search"),
    "searching/cache_edges.py": ("searching/test_cache_budget.py", "fewstep.searching.cache_edges"),
    "searching/candidates.py": ("searching/test_learn.py", "fewstep.searching.candidates"),
    "searching/grids.py": ("searching/test_gits.py", "fewstep.searching.grids"),
    "searching/job.py": ("searching/test_search.py", "fewstep.searching.job"),
    "searching/noise_search.py": ("searching/test_find_noise.py", "fewstep.searching.noise_search"),
    "searching/reference.py": ("searching/test_learn.py", "fewstep.searching.reference"),
    "searching/stepwise.py": ("searching/test_dynamic_compensation.py", "fewstep.searching.stepwise"),
    "scale/divided.py": ("scale/test_patches.py", "fewstep.scale.divided"),
    "timesteps/admissible.py": ("timesteps/test_timesteps.py", "admissible"),
    "timesteps/grid.py": ("timesteps/test_timesteps.py", "fewstep.timesteps.grid"),
    "timesteps/rules.py": ("timesteps/test_timesteps.py", "karras"),
    "training/pictures.py": ("training/test_trainer_options.py", "write_pictures"),
    "serving/counters.py": ("serving/test_engine.py", "fewstep.serving.counters"),
    "serving/models.py": ("serving/test_app.py", "fewstep.serving.models"),
    "serving/pictures.py": ("serving/test_app.py", "pictures"),
    "serving/protocol.py": ("serving/test_app.py", "Generation"),
    "serving/run.py": ("serving/http.py", "fewstep.serving.run"),
    "serving/service.py": ("serving/test_app.py", "fewstep.serving.service"),
    "serving/studio_accelerate.py": ("serving/test_studio.py", "Hunt"),
    "serving/studio_compare.py": ("serving/test_studio.py", "compare"),
    "serving/studio_draw.py": ("serving/test_studio.py", "painted"),
    "serving/studio_shown.py": ("serving/test_studio.py", "comparison"),
    "serving/told.py": ("serving/test_app.py", "command"),
    "training/sources.py": ("training/test_trainer_options.py", "fewstep.training.sources"),
    "training/fit.py": ("training/test_objective.py", "fewstep.training.fit"),
    "training/sections.py": ("contracts/test_trainers.py", "fewstep.training.sections"),
    "training/state.py": ("training/test_trainer.py", "fewstep.training.state"),
}


def within(cards: Iterable[Method]) -> set[Path]:
    return {PACKAGE.parent / method.file for method in cards}


def by_contract() -> set[Path]:
    """The files with a card that a contract is run over: as the contracts themselves list them."""
    kinds = {type(process) for process in test_processes.PROCESSES}
    return (
        within(card(name, "solver")[0] for name in (*test_sampling.SOLVERS, *test_live.SOLVERS))
        | within(method for method in methods("process") if method.load() in kinds)
        | within(test_conditions.CARDS[name] for name in test_conditions.EXAMPLES)
        | within(test_saving.CARDS[name] for name in test_saving.EXAMPLES)
        | within([*test_operators.CARDS.values(), *test_restoration.CARDS.values()])
        | within([*test_networks.CARDS, *test_wrappers.WRAPPERS.values(), *test_metrics.METRICS])
        | within(test_operators.CARDS[name] for name in test_operators.EXAMPLES)
        | within([*test_data.SETS, *test_data.FORMATS, *test_searches.SEARCHES, *test_trainers.METHODS])
    )


CONTRACTS = by_contract()


def called(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def mirror(path: Path) -> Path:
    return TESTS / path.relative_to(PACKAGE).parent / f"test_{path.name}"


def says(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", text) is not None


def test_every_file_has_its_test():
    for path in FILES:
        if called(path) not in ELSEWHERE:
            test = mirror(path).relative_to(TESTS.parent)
            assert mirror(path).is_file() or path in CONTRACTS, f"{called(path)} needs {test}, or a contract"
            continue
        assert not mirror(path).is_file() and path not in CONTRACTS, f"{called(path)} needs no row in ELSEWHERE"
        test, word = ELSEWHERE[called(path)]
        assert says((TESTS / test).read_text("utf-8"), word), f"{test} says nothing of {word}"
        module = "fewstep." + called(path).removesuffix(".py").replace("/", ".")
        defined = re.search(rf"^ *(def|class) {word}\b", path.read_text("utf-8"), re.MULTILINE)
        assert word in (module, path.stem) or defined, f"{called(path)} has no {word}"


def test_every_row_is_of_a_file():
    assert set(ELSEWHERE) <= {called(path) for path in FILES}


def test_contracts_cover_what_registers():
    """Each of them covers files, and what no contract runs over is not among them."""
    found = {called(path) for path in CONTRACTS}
    assert {"sampling/heun.py", "sampling/pc.py", "processes/vp.py", "conditions/label.py", "networks/unet.py"} <= found
    assert {"denoisers/network.py", "guidance/cfg.py", "data/digits.py", "data/npz.py", "metrics/psnr.py"} <= found
    assert {"searching/gits.py", "training/weightings.py"} <= found
    assert not {"sampling/compiled.py", "sampling/parallel.py", "hub/flux.py", "processes/per_element.py"} & found
