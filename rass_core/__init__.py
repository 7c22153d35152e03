"""RASS finds the harmless prompts that a chat model refuses, and trains or edits the model so that it answers them.

The core knows no Prefect: tensors and tables in, values and tables out. What `__all__` names is imported when it is
first used, so that `import rass_core` loads no libraries:

    import rass_core

    config = rass_core.load_config("rass.yaml")
    lake = rass_core.Lake.open("lake", create=False)
    lake.query("SELECT * FROM boundaries")
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Lake", "Panel", "RassConfig", "RassError", "SteeredEngine", "boundary_report", "candidate_directions",
    "default_panel", "fit_boundary", "load_config", "load_prompts", "margins", "prefix_log_odds",
]  # fmt: skip

if TYPE_CHECKING:
    from rass_core.config import RassConfig, load_config
    from rass_core.data.prompts import load_prompts
    from rass_core.errors import RassError
    from rass_core.judges.panel import Panel, default_panel
    from rass_core.lake.store import Lake
    from rass_core.models.prefix_logprobs import prefix_log_odds
    from rass_core.models.vllm_engine import SteeredEngine
    from rass_core.probe.boundary import boundary_report, fit_boundary
    from rass_core.probe.geometry import candidate_directions, margins

_MODULES = {
    "Lake": "lake.store",
    "Panel": "judges.panel",
    "RassConfig": "config",
    "RassError": "errors",
    "SteeredEngine": "models.vllm_engine",
    "boundary_report": "probe.boundary",
    "candidate_directions": "probe.geometry",
    "default_panel": "judges.panel",
    "fit_boundary": "probe.boundary",
    "load_config": "config",
    "load_prompts": "data.prompts",
    "margins": "probe.geometry",
    "prefix_log_odds": "models.prefix_logprobs",
}
"""Public name → module of this package that defines it; as the imports for type checkers."""


def __getattr__(name: str) -> Any:
    """Import what a public name means."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
