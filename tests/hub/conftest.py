"""Tiny diffusers pipelines, saved in folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(class name, scheduler, **options of the network)`: the pipeline, and the folder it is saved in."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from claims.pipelines import tiny as make_tiny

    def make(kind, scheduler, **options):
        pipeline = make_tiny(kind, scheduler, **options)
        folder = tmp_path_factory.mktemp(kind)
        pipeline.save_pretrained(folder)
        return pipeline, folder

    return make
