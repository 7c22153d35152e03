"""Asking a chat model: behind an OpenAI-compatible endpoint, or in the engine that is open anyway."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from rass_core.config import EndpointConfig
from rass_core.errors import JudgeError

if TYPE_CHECKING:
    from rass_core.engine import SteeredEngine

ANSWER_TOKENS = 400
"""Longest answer."""
TEMPERATURE = 0.7
"""Of every draw but the first."""
MAX_RETRIES = 3
"""Of a call that timed out or was refused for now (429, 5xx), with back-off."""
GIVE_UP_AFTER = 20
"""Calls failed in a row that mean an outage."""


@dataclass(frozen=True)
class NoAnswer:
    """What stands in place of an answer that is not to be had or not on the form."""

    reason: str


class Complete(Protocol):
    """A chat model as a batch callable."""

    def __call__(
        self, prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
    ) -> list[str | NoAnswer]:
        """Return one answer a prompt, in order.

        Args:
            prompts: What a user says.
            schema: JSON schema that the answers are held to as far as the model's server can.
            draw: 0 is the greedy answer; each other number is a sample of its own, the same when asked again.
        """
        ...


def ask_engine(
    engine: "SteeredEngine", prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0
) -> list[str | NoAnswer]:
    """Ask the engine's model, unsteered, its answers held to the schema; bind the engine to get a `Complete`."""
    # Which import the judges, as these import this module.
    from rass_core.engine import GenerationRequest
    from rass_core.judges.thinking import CUT_OFF

    ids = [engine.chat.ids(prompt) for prompt in prompts]
    fits = [len(each) < engine.max_model_len for each in ids]
    requests = [
        GenerationRequest(
            each, ANSWER_TOKENS, temperature=TEMPERATURE if draw else 0.0, seed=draw or None,
            json_schema=None if schema is None else dict(schema),
        )
        for each, fit in zip(ids, fits, strict=True) if fit
    ]  # fmt: skip
    said = (NoAnswer(CUT_OFF) if each.is_cut_off else each.text for each in engine.generate(requests))
    return [
        next(said) if fit else NoAnswer(f"{len(each)} tokens asked, the model takes {engine.max_model_len}")
        for each, fit in zip(ids, fits, strict=True)
    ]


class Endpoint:
    """An OpenAI-compatible endpoint.

    A call that timed out or was refused for now is tried again with back-off; whatever is no chat
    completion in JSON, such as a proxy's page, is a failed call. An endpoint that knows no JSON
    schemas is asked without from then on.
    """

    def __init__(self, config: EndpointConfig) -> None:
        import openai  # only runs that name an endpoint need it

        key = os.environ.get(config.api_key_variable, "none")
        self._client = openai.OpenAI(
            base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=MAX_RETRIES
        )
        self._config = config
        self._takes_schema = True

    def __call__(
        self, prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
    ) -> list[str | NoAnswer]:
        """Return the answers in order.

        Raises:
            JudgeError: GIVE_UP_AFTER calls failed in a row: an outage, which is no verdict.
        """
        return self.draws(prompts, [draw] * len(prompts), schema)

    def draws(
        self, prompts: Sequence[str], draws: Sequence[int], schema: Mapping[str, Any] | None = None,
        done: Callable[[int], None] = lambda n: None,
    ) -> list[str | NoAnswer]:  # fmt: skip
        """Return the answers in order, each with a draw of its own.

        Args:
            done: Is called with the number of answers so far.

        Raises:
            JudgeError: As when called.
        """
        answered = count(1)
        have_failed: deque[bool] = deque(maxlen=GIVE_UP_AFTER)

        def ask(prompt: str, draw: int) -> str | NoAnswer:
            answer = self._answer(prompt, schema, draw)
            done(next(answered))
            have_failed.append(isinstance(answer, NoAnswer))
            if isinstance(answer, NoAnswer) and len(have_failed) == GIVE_UP_AFTER and all(have_failed):
                raise JudgeError(f"{answer.reason}; {GIVE_UP_AFTER} calls failed in a row, is the endpoint up?")
            return answer

        with ThreadPoolExecutor(self._config.max_concurrency) as pool:
            return list(pool.map(ask, prompts, draws))

    def _answer(self, prompt: str, schema: Mapping[str, Any] | None, draw: int) -> str | NoAnswer:
        from openai import BadRequestError, UnprocessableEntityError

        call: dict[str, Any] = {
            "model": self._config.model, "messages": [{"role": "user", "content": prompt}],
            "temperature": TEMPERATURE if draw else 0.0, "max_tokens": ANSWER_TOKENS,
        }  # fmt: skip
        if draw:
            call["seed"] = draw
        try:
            if schema is None or not self._takes_schema:
                return self._content(call)
            try:
                form = {"name": "form", "strict": True, "schema": dict(schema)}
                return self._content({**call, "response_format": {"type": "json_schema", "json_schema": form}})
            except (BadRequestError, UnprocessableEntityError):
                answer = self._content(call)
                self._takes_schema = False  # only now is it known that the schema was what it refused
                return answer
        except Exception as error:  # the client raises its own tree, and whatever a proxy sends back
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            return NoAnswer(f"{self._config.base_url}: {reason}")

    def _content(self, call: Mapping[str, Any]) -> str:
        """Return the content of a chat completion."""
        body = bytearray()
        with self._client.chat.completions.with_streaming_response.create(**call) as reply:
            # The client's time-out is of each read: a server that sends a space now and then passes it for ever.
            deadline = time.monotonic() + self._config.timeout_s
            for chunk in reply.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole answer within {self._config.timeout_s:g} s")
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"no chat completion but {bytes(body[:80])!r}") from error
        if not isinstance(content, str):
            raise ValueError("a chat completion without text")
        return content
