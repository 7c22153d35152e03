"""One tree of errors; each message says what, where and what to do next."""


class RassError(Exception):
    """Anything a user can fix: the command line prints it in one line and exits with 2."""


class ConfigError(RassError, ValueError):
    """A configuration that cannot be read or is contradictory."""


class PromptError(RassError, ValueError):
    """A prompt file or prompt that cannot be used."""


class LanguageError(PromptError):
    """What is written for a language is none that is known."""


class ModelError(RassError, ValueError):
    """A model that cannot be loaded, or lacks what is asked of it."""


class ActivationError(RassError, ValueError):
    """Residual streams of the wrong shape, or not finite."""


class BoundaryError(RassError, ValueError):
    """A boundary or statistic that the data do not identify."""


class SteeringError(RassError, RuntimeError):
    """A request asked for steering or capture and did not get it."""


class JudgeError(RassError, ValueError):
    """A judge or moderator that cannot do its work."""


class EndpointError(JudgeError):
    """An endpoint that is down, refuses the key, or does not have the model; also where it writes prompts."""


class GenerationError(RassError, ValueError):
    """Prompts cannot be written as asked."""


class SelectionError(RassError, ValueError):
    """A selection that contradicts itself."""


class LakeError(RassError, OSError):
    """A lake that cannot be read or written."""


class GateError(RassError, RuntimeError):
    """A mitigated model that may not be published."""
