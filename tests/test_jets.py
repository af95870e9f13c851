"""Jets against Arb's own power series, which know one direction at a time."""

import pytest
from flint import arb_series

from verify.em.budget import directions
from verify.em.problems import COVARIANCE_TYPES, small
from verify.em.reference import ROBUST, em_step, law, precision, start, start_along
from verify.formats import format_of


@pytest.mark.parametrize("kernel", ROBUST)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_step_has_the_derivatives_of_a_series_along_each_direction(kernel: str, covariance_type: str) -> None:
    fmt = format_of("float64")
    given, unit = small(3, fmt, covariance_type), float(fmt.unit_roundoff)
    along = list(directions(given))
    with precision():
        options = {"covariance_type": covariance_type, "reg_covar": 0.0, "density": law(kernel, given.shape[2])}
        jets = em_step(*start_along(given, along), **options).flat()
        for place, direction in enumerate(along):
            series = em_step(*start(given, direction), **options).flat()
            for jet, one in zip(jets, series, strict=True):
                assert isinstance(one, arb_series)
                assert jet.value.overlaps(one[0])
                slope = jet.derivatives()[place]
                assert slope.overlaps(one[1])
                # Enclosures so wide that they overlap anything would say nothing. Zeros are known to u².
                both = slope.union(one[1])
                assert float(both.rad()) <= unit * max(abs(float(both.mid())), unit)
