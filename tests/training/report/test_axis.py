"""The axis of a chart: it always has room between its ends."""

import pytest

from training.report.axis import Axis


@pytest.mark.parametrize(
    "values", [[1e-13, 3e-13], [1.0, 1.0 - 1e-12], [0.0], [], [2.5, 2.5], [1e6, 1e6 + 1e-3]]
)
@pytest.mark.parametrize("zero", [True, False])
def test_values_that_are_nearly_equal_have_an_axis(values: list[float], zero: bool) -> None:
    axis = Axis.over("log loss", values, zero=zero)
    assert axis.low < axis.high
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert len(set(axis.ticks)) == len(axis.ticks) > 1
