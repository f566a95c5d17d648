"""Data sets under one import: what they are (`dataset.py`) and how they are opened (`open.py`)."""

from __future__ import annotations

from fewstep.data.dataset import SPLITS, Dataset, DataSpec
from fewstep.data.open import is_built_in, open_built_in, open_data

__all__ = ["SPLITS", "DataSpec", "Dataset", "is_built_in", "open_built_in", "open_data"]
