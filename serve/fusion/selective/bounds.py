"""Upper bounds of an error rate, from errors counted on validation rows."""

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.members import Floats


def upper_bounds(errors: ArrayLike, rows: ArrayLike, confidence: float) -> Floats:
    """Returns the error rate that is not exceeded with `confidence` (0..1), for `errors` among `rows`: the one-sided
    bound of Clopper and Pearson (1934). It is 1 if all rows are errors, or if there are none."""
    from scipy.special import betaincinv

    wrong, count = np.broadcast_arrays(
        np.asarray(errors, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    )
    right = np.maximum(count - wrong, 1)
    bounds: Floats = np.where(wrong < count, betaincinv(wrong + 1, right, confidence), 1.0)
    return bounds
