"""The table of bad inputs, and of odd ones that are good."""

from tests.bad_inputs import command_line, configurations, judging, lakes, models

CASES = [*configurations.CASES, *command_line.CASES, *lakes.CASES, *models.CASES, *judging.CASES]
