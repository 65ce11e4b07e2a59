"""Resamples to compare with references that are computed on repeated rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

ROWS = 60


@pytest.fixture(params=["whole", "resample"])
def drawn(request: pytest.FixtureRequest) -> NDArray[np.int64]:
    """Indices of the rows: each once, or a resample with repetitions and gaps, in order."""
    if request.param == "whole":
        return np.arange(ROWS)
    return np.sort(np.random.default_rng(5).integers(ROWS, size=ROWS))


@pytest.fixture
def times(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each row is drawn [1, N]."""
    return np.bincount(drawn, minlength=ROWS)[None].astype(float)
