"""Low-rank adapters that requests name: read in the background while their first steps run on the base's weights.

A request with an adapter shares calls with the others until the adapter is there, and at evaluation `by` at the latest
it waits for it. From then on its rows go through a network that has the adapter beside the base's own weights, which
nobody writes to: other requests never see it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.low_rank import Factors, adapted
from fewstep.serving.models import Running

METHODS = (
    Method(
        "adapter-serving",
        kind="server",
        paper="SwiftDiffusion: Efficient Diffusion Model Serving with Add-on Modules (Li et al., 2024)",
        arxiv="2407.02031",
        claim="the first steps run while the adapter is read; it joins by step k, for its own rows alone",
        use="Adapters",
    ),
)

KEPT = 16  # adapters of a model that stay in memory


def factors(model: Denoiser, file: Path) -> tuple[str, dict[str, Factors]]:
    """Where the model's network lies in it, and an adapter's sides by layer.

    Raises:
        ValueError: no adapter, one for another network, a model that takes none.
    """
    pipeline: Any = getattr(model, "pipeline", None)
    if pipeline is not None:
        from fewstep.hub.lora import read_factors as of_pipeline

        return "network", of_pipeline(pipeline, file)
    if not isinstance(model, NetworkDenoiser):
        raise ValueError(f"adapters are for networks alone, and this model is a {type(model).__name__}")
    from fewstep.training.adapter_files import read_factors

    return "network", read_factors(model, file)


class Adapters:
    """The adapters of a folder, by the names of its files without their ending.

    Args:
        folder: of `.safetensors` files: fewstep's own, or for pipelines diffusers', PEFT's and kohya's.
        by: evaluations that a request makes at most before its adapter acts; 0 waits for it.
        read: what reads one, `factors`.

    Raises:
        ValueError: no such folder, none in it, `by` below 0.
    """

    def __init__(
        self,
        folder: Path,
        by: int = 2,
        read: Callable[[Denoiser, Path], tuple[str, dict[str, Factors]]] = factors,
    ):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder} of adapters")
        if by < 0:
            raise ValueError(f"an adapter acts from evaluation 0 on or later, got {by}")
        self.files: Mapping[str, Path] = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        if not self.files:
            raise ValueError(f"the folder {folder} holds no adapter (.safetensors)")
        self.by, self.read = by, read
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="fewstep adapter")

    def wanted(self, running: Running, name: str) -> tuple[Future[Denoiser], int]:
        """The model with an adapter, as soon as it has been read, and the evaluation before which it must be there.

        Raises:
            ValueError: an unknown adapter. The future raises for one that does not fit.
        """
        if name not in self.files:
            raise suggest("adapter", name, self.files)
        made = running.adapted  # they go when the model goes, whose weights they share
        with self._lock:
            found = made.get(name)
            if found is None or (found.done() and found.exception() is not None):
                found = made[name] = self._pool.submit(self._make, running, self.files[name])
            made.move_to_end(name)
            while len(made) > KEPT:
                made.popitem(last=False)
        return found, self.by

    def _make(self, running: Running, file: Path) -> Denoiser:
        base = running.served.base
        where, found = self.read(base, file)
        made = adapted(base, {f"{where}.{layer}": sides for layer, sides in found.items()})
        assert isinstance(made, Denoiser)
        return running.served.around(running.served.filled(made))
