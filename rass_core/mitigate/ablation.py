"""What methods that remove the false-refusal direction share."""

from typing import TYPE_CHECKING

from pydantic import Field

from rass_core.errors import ActivationError
from rass_core.mitigate.base import DirectionSource, Effort, MethodSettings, MitigationContext, MitigationMethod

if TYPE_CHECKING:  # numpy: a configuration is read without it
    from rass_core.stats.arrays import Array


class AblationSettings(MethodSettings):
    """Settings of a method that removes the false-refusal direction."""

    strength: float = Field(default=1.0, gt=0, le=1)
    """λ, the share of the direction that is removed."""
    direction: DirectionSource = "learned"
    """How the direction is found."""


class AblationMethod(MitigationMethod[AblationSettings]):
    """Removes the false-refusal direction, made orthogonal to the harm direction. A subclass says from what."""

    @property
    def direction(self) -> DirectionSource:
        """Return how the direction is found."""
        return self.settings.direction

    def effort(self, n_pairs: int) -> Effort:
        """Return that nothing is trained; the direction has a stage of its own."""
        return Effort()

    def directions(self, context: MitigationContext) -> "tuple[Array, Array]":
        """Return the false-refusal direction and the harm direction, (d_model,) each.

        Raises:
            ActivationError: The context holds no false-refusal direction.
            BoundaryError: The probe chose no harm direction.
        """
        if context.false_refusal is None:
            raise ActivationError(f"{self.name}: no false-refusal direction in the context; give one")
        return context.false_refusal, context.direction_with("harm").vector
