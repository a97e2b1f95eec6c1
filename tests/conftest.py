"""What several tests share: where the data is, and the tiny models, built once."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real media files."""
    return DATA


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of the official code's numbers: ``LTX2_GOLDENS``, or the project's copy."""
    return Path(os.environ.get("LTX2_GOLDENS") or Path(__file__).parent / "goldens")


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], object]:
    """Builds an embedded model by name, once a session."""
    import torch

    from ltx2.model.tiny import build_tiny

    return cache(lambda name: build_tiny(name, torch.device("cpu"), torch.float32))
