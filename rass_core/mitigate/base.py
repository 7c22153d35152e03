"""Mitigation methods: what one is given, what it returns, and the registry of them.

A method is a class in a file of its own with its settings beside it. `rass_core.mitigate.methods` holds the built-in
ones; a user's own is named `package.module:Class` in `mitigate.methods`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel

from rass_core.errors import BoundaryError, ConfigError
from rass_core.mitigate.pairs import PreferencePair
from rass_core.models.settings import ModelConfig
from rass_core.registry import Registry
from rass_core.settings import STRICT

if TYPE_CHECKING:  # numpy and torch: a configuration is read without them
    from rass_core.models.chat import ChatFormat
    from rass_core.probe.geometry import Direction
    from rass_core.stats.arrays import Array

Progress = Callable[[int, int], None]
"""Called with the units done and how many there are in all."""
ShowProgress = Callable[[str, int], AbstractContextManager[Progress]]
"""Called with a name and the number of units, 1 where that is not known yet; gives what is called for each unit."""
DirectionSource = Literal["mean_difference", "learned"]
"""How the false-refusal direction is found. mean_difference: the probe's own, refused − answered within
pseudo_harmful, without training. learned: fitted to the pairs."""


class MethodSettings(BaseModel):
    """What every method can be set: nothing. A method's own settings extend it.

    A field named as one of the section `mitigate` (training, strength, direction) takes the section's value where the
    method's entry in `mitigate.methods` does not set it.
    """

    model_config = STRICT


MITIGATIONS = Registry("mitigation method", ["rass_core.mitigate.methods"], MethodSettings)
Settings = TypeVar("Settings", bound=MethodSettings)


def no_progress(_what: str, _total: int) -> AbstractContextManager[Progress]:
    """Show nothing of what is counted."""
    return nullcontext(lambda _done, _of: None)


def _no_status(_what: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class MitigationContext:
    """What a method is given beside its settings."""

    pairs: Sequence[PreferencePair]
    """What is to be learnt, each prompt once."""
    model: ModelConfig
    """The model that is mitigated; `reference` is its folder or hub name, `dtype` the type of its weights."""
    chat: "ChatFormat"
    """How the model is spoken to."""
    folder: Path
    """Where the variant's files go. It keeps what an interrupted attempt left."""
    directions: Sequence["Direction"] = ()
    """Those of the probe, with the roles they were chosen for."""
    false_refusal: "Array | None" = None
    """The false-refusal direction, (d_model,); None unless the method asks for it by `direction`."""
    progress: ShowProgress = no_progress
    """Shows what is counted."""
    status: Callable[[str], AbstractContextManager[None]] = _no_status
    """Shows what runs without a count, by its name."""

    @property
    def checkpoint(self) -> Path:
        """Return the folder for a whole checkpoint, which is published as it is."""
        return self.folder / "checkpoint"

    @property
    def adapter(self) -> Path:
        """Return the folder for a LoRA adapter, which is published in place of the merged model."""
        return self.folder / "adapter"

    def direction_with(self, role: str) -> "Direction":
        """Return the probe's direction of a role, such as harm or add.

        Raises:
            BoundaryError: The probe chose none.
        """
        for direction in self.directions:
            if role in direction.roles:
                return direction
        raise BoundaryError(f"no direction has the role {role!r}; give harmful and harmless prompts and probe again")


@dataclass(frozen=True)
class MitigatedModel:
    """A variant of a model: what is loaded, what is done while it runs, and how the making went."""

    weights: Path | None = None
    """Checkpoint, below the context's folder, that is loaded in place of the model; None loads the model itself."""
    adapter: Path | None = None
    """LoRA adapter, below the context's folder, that was merged into `weights`; None if there is none."""
    ablated: "Array | None" = None
    """Direction that is removed after every block while it runs, (d_model,), unit length; None for none."""
    strength: float = 1.0
    """λ, the share of `ablated` that is removed."""
    losses: Sequence[float] = ()
    """Loss of every training step."""
    n_too_long: int = 0
    """Pairs that were left out because of their length."""
    harm_cosine: float | None = None
    """Cosine of what was removed with the harm direction, before it was made orthogonal to it."""
    reason: str | None = None
    """What a reader of the report must know, in a sentence."""


@dataclass(frozen=True)
class Effort:
    """What a method computes, for `rass plan`; a pass reads every pair with one answer."""

    forward_passes: float = 0.0
    backward_passes: float = 0.0
    """Forward passes with gradients, and the gradients."""
    n_steps: int = 0
    """Steps of the optimiser."""
    how: str = "no training"
    """How `n_steps` comes about."""
    writes_weights: bool = True
    """The variant is another checkpoint, which is loaded for its evaluation."""


class MitigationMethod(ABC, Generic[Settings]):
    """One way to mitigate over-refusal.

    A subclass implements `apply`, and overrides of the rest what differs:

        class Untouched(MitigationMethod[MethodSettings]):
            def apply(self, context: MitigationContext) -> MitigatedModel:
                return MitigatedModel(reason="the model as it is")

    Args:
        settings: Settings of its class; `Settings` beside the class names it for a user's own method.
        name: Name of the variant that it makes.
    """

    libraries: ClassVar[Sequence[str]] = ()
    """Packages on whose versions the result depends."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings, self.name = settings, name

    @property
    def direction(self) -> DirectionSource | None:
        """Return how the false-refusal direction that it is given is found; None if it needs none."""
        return None

    def check(self, model: ModelConfig) -> None:
        """Raise RassError where the method cannot work on this model; called before a run computes anything."""

    def effort(self, n_pairs: int) -> Effort | None:
        """Return what the method computes on so many pairs; None where that is not known."""
        return None

    def shown_settings(self) -> dict[str, Any]:
        """Return setting → value as table `variants` and the card show them, groups of settings unfolded."""
        shown: dict[str, Any] = {}
        for name, value in self.settings.model_dump(mode="json").items():
            shown |= value if isinstance(getattr(self.settings, name), BaseModel) else {name: value}
        return shown

    @abstractmethod
    def apply(self, context: MitigationContext) -> MitigatedModel:
        """Make the variant and write its files below `context.folder`.

        An interrupted call is repeated with the same arguments and folder. `context.checkpoint` and `context.adapter`
        are the places from which `rass publish` takes a variant.

        Raises:
            RassError: It cannot be made; says what to do.
        """


def method_of(kind: str, **settings: Any) -> MitigationMethod[Any]:
    """Return a method with its settings.

    Args:
        kind: A built-in one's name, or `package.module:Class`.
        settings: Those that differ from their defaults.

    Raises:
        ConfigError: No such method, or a class that is no method.
        ValidationError: Settings that it does not take.
    """
    entry = MITIGATIONS.find(kind)
    if not (isinstance(entry.build, type) and issubclass(entry.build, MitigationMethod)):
        raise ConfigError(f"mitigation method {kind!r}: not one; extend rass_core.mitigate.base.MitigationMethod")
    return entry.build(entry.settings.model_validate(settings), variant_name(kind))


def variant_name(kind: str) -> str:
    """Return the name of the variant that a method makes: its own, of a user's class the name of the class."""
    return kind.rpartition(":")[2]
