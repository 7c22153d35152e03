"""Operator `imitate`."""

from rass_core.generate.operators.base import OPERATORS, Operator


@OPERATORS.register("imitate")
class Imitate(Operator):
    """Shows three requests as earlier turns of a user; the model writes the next turn."""

    n_parents = 3
    seed_labels = ("pseudo_harmful",)
    roles = ("user",)
    shares_category = True
