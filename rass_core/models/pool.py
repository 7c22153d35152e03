"""The models of one process: each is loaded when it is first needed, and kept until it is released."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat_client import Endpoint, NoAnswer, ask_engine
from rass_core.models.retrying import Say, ignored
from rass_core.models.settings import EndpointConfig, ModelConfig
from rass_core.models.vllm_engine import SteeredEngine

Loading = Callable[[ModelConfig, str], AbstractContextManager[None]]
"""Shows that a model is loaded in `vLLM` or `transformers`."""


@contextmanager
def _unseen(_model: ModelConfig, _where: str) -> Iterator[None]:
    yield


class ModelPool:
    """Engines, transformers models and endpoints by their settings.

    Args:
        seed: Seed of the engines.
        longest: Model → tokens of the longest request; None where that is not known.
        loading: Entered while a model is loaded.
        opened: Called with each engine that was opened, such as to compare it with transformers.
        say: Gets the lines of endpoints, such as that one is waited for.
    """

    def __init__(
        self, seed: int = 0, longest: Callable[[ModelConfig], int] | None = None, loading: Loading = _unseen,
        opened: Callable[[ModelConfig, SteeredEngine], None] | None = None, say: Say = ignored,
    ) -> None:  # fmt: skip
        self.say = say
        self._seed, self._longest, self._loading, self._opened = seed, longest, loading, opened
        self._kept: dict[str, Any] = {}

    def engine(self, model: ModelConfig) -> SteeredEngine:
        """Return the vLLM engine of a model."""
        key = f"engine {model.model_dump_json()}"
        if key not in self._kept:
            longest = 0 if self._longest is None else self._longest(model)
            with self._loading(model, "vLLM"):
                self._kept[key] = SteeredEngine(
                    model.reference, seed=self._seed, longest=longest, **model.engine_options()
                )
            if self._opened is not None:
                self._opened(model, self._kept[key])
        engine: SteeredEngine = self._kept[key]
        return engine

    def causal_lm(self, model: ModelConfig) -> Any:
        """Return the transformers model."""
        key = _transformers_key(model)
        if key not in self._kept:
            with self._loading(model, "transformers"):
                self._kept[key] = load_causal_lm(model.reference, model.dtype)[0]
        return self._kept[key]

    def endpoint(self, config: EndpointConfig) -> Endpoint:
        """Return an endpoint, kept with what is known of it."""
        key = f"endpoint {config.model_dump_json()}"
        if key not in self._kept:
            self._kept[key] = Endpoint(config, self.say)
        found: Endpoint = self._kept[key]
        return found

    def asking(self, model: ModelConfig) -> Callable[..., list[str | NoAnswer]]:
        """Return what asks a model through its engine, which is loaded only then."""

        def ask(
            prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
        ) -> list[str | NoAnswer]:
            return ask_engine(self.engine(model), prompts, schema, draw)

        return ask

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """Return something else that is made once, such as a panel of judges."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def blueprint(self) -> Callable[[], "ModelPool"]:
        """Return what makes an empty pool of the same settings in another process."""
        return partial(ModelPool, self._seed)

    def release(self, model: ModelConfig) -> None:
        """Free the engine of a model."""
        engine = self._kept.pop(f"engine {model.model_dump_json()}", None)
        if engine is not None:
            engine.close()

    def release_causal_lm(self, model: ModelConfig) -> None:
        """Free the transformers model."""
        self._kept.pop(_transformers_key(model), None)

    def close(self) -> None:
        """Free everything."""
        for each in self._kept.values():
            if isinstance(each, SteeredEngine):
                each.close()
        self._kept.clear()


def _transformers_key(model: ModelConfig) -> str:
    return f"transformers {model.model_dump_json()}"
