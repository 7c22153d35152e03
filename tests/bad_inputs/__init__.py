"""The table of bad inputs, and of odd ones that are good."""

from tests.bad_inputs import configurations, lakes

CASES = [*configurations.CASES, *lakes.CASES]
