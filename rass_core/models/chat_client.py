"""Asking a chat model: behind an OpenAI-compatible endpoint, or in the engine that is open anyway."""

import json
import logging
import os
import re
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from socket import EAI_NONAME, gaierror
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rass_core.errors import EndpointError
from rass_core.models.completion import Answer, HttpReply, Problem, read_reply
from rass_core.models.retrying import GIVE_UP_AFTER, Say, Tries, Waiting, ignored
from rass_core.models.settings import EndpointConfig
from rass_core.models.urls import without_secrets

if TYPE_CHECKING:
    from rass_core.models.vllm_engine import SteeredEngine

ANSWER_TOKENS = 400
"""Longest answer of the engine."""
MORE_TOKENS = 4
"""Factor by which the limit grows for a model that thinks longer."""
TEMPERATURE = 0.7
"""Temperature of every draw but the first."""
MAX_RETRIES = 3
"""Retries of a call that fails while other calls, or a trial call, are answered: then the prompt is at fault."""
MAX_BODY_BYTES = 4_000_000
"""Longest reply; a chat completion takes thousands of bytes."""


@dataclass(frozen=True)
class NoAnswer:
    """The reason why there is no answer, or none that matches the form."""

    reason: str
    kind: Literal["failed", "declined", "filtered"] = "failed"
    """declined, filtered: the model or a filter before it does not want to answer; nothing is broken."""
    again: bool = False
    """Another draw may bring an answer."""


class CutOff(str):
    """An answer that the limit of tokens cut off."""


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
    from rass_core.models.thinking import CUT_OFF
    from rass_core.models.vllm_requests import GenerationRequest

    ids = [engine.chat.ids(prompt) for prompt in prompts]
    fits = [len(each) < engine.max_model_len for each in ids]
    requests = [
        GenerationRequest(
            each,
            ANSWER_TOKENS,
            temperature=TEMPERATURE if draw else 0.0,
            seed=draw or None,
            json_schema=None if schema is None else dict(schema),
        )
        for each, fit in zip(ids, fits, strict=True)
        if fit
    ]
    said = (NoAnswer(CUT_OFF) if each.is_cut_off else each.text for each in engine.generate(requests))
    return [
        next(said) if fit else NoAnswer(f"{len(each)} tokens asked, the model takes {engine.max_model_len}")
        for each, fit in zip(ids, fits, strict=True)
    ]


class Endpoint:
    """An OpenAI-compatible endpoint.

    What it does not take of a call (a JSON schema, `max_tokens`, a temperature) is renamed or left out from then on.
    While it is down, busy or limits the rate, it is waited for. Its password and key appear in no text.

    Args:
        config: Where and how it is asked.
        say: Gets a line where it is waited for, or asked otherwise than planned.

    Raises:
        EndpointError: A key, or a proxy of the environment, that cannot be used.
    """

    def __init__(self, config: EndpointConfig, say: Say = ignored) -> None:
        self._config, self._address, self._say = config, config.address, say
        self.where, self.model = str(self._address), config.model
        key = os.environ.get(config.api_key_variable, "").strip()
        self._secrets = [*self._address.secrets, key]
        self._client = self._opened(key)
        self._lock = threading.Lock()
        self._spoken: dict[str, str | None] = {}
        """Parameter → its name there, None where it is left out; those not in here are sent as they are."""
        self._taken: set[str] = set()
        """Parameters that were in a call that was answered."""
        self._max_tokens = config.max_tokens
        self._answered_at = -1.0
        """Time of the newest answer; negative before the first."""

    def __call__(
        self, prompts: Sequence[str], schema: Mapping[str, Any] | None = None, draw: int = 0, /
    ) -> list[str | NoAnswer]:
        """Return the answers in order.

        Raises:
            EndpointError: It is down for longer than it is waited for, does not take the key, has no such model, or
                GIVE_UP_AFTER calls failed in a row.
        """
        return self.draws(prompts, [draw] * len(prompts), schema)

    def draws(
        self,
        prompts: Sequence[str],
        draws: Sequence[int],
        schema: Mapping[str, Any] | None = None,
        done: Callable[[int], None] = lambda n: None,
    ) -> list[str | NoAnswer]:
        """Return the answers in order, each with a draw of its own.

        Args:
            done: Is called with the number of answers so far.

        Raises:
            EndpointError: As when called.
        """
        answered = count(1)
        failed: deque[str | None] = deque(maxlen=GIVE_UP_AFTER)
        waiting = Waiting(self._config.outage_s, self._say)

        def ask(prompt: str, draw: int) -> str | NoAnswer:
            with waiting.ends_with_an_error():
                answer = self._answer(prompt, schema, draw, waiting)
                done(next(answered))
                is_failed = isinstance(answer, NoAnswer) and answer.kind == "failed"
                failed.append(answer.reason if isinstance(answer, NoAnswer) and is_failed else None)
                reasons = list(failed)
                if len(reasons) == GIVE_UP_AFTER and all(reasons):
                    why = by_reason([each for each in reasons if each])
                    raise EndpointError(f"endpoint {self.where}: {GIVE_UP_AFTER} calls failed in a row ({why})")
                return answer

        # The lines of a run's log need the context of the thread that asks.
        with ThreadPoolExecutor(self._config.max_concurrency) as pool:
            calls = [pool.submit(partial(copy_context().run, ask, *each)) for each in zip(prompts, draws, strict=True)]
            try:
                return [call.result() for call in calls]
            except BaseException as error:
                waiting.stop(error)
                pool.shutdown(cancel_futures=True)
                raise waiting.error or error from None

    def _answer(self, prompt: str, schema: Mapping[str, Any] | None, draw: int, waiting: "Waiting") -> str | NoAnswer:
        """Return the answer to one prompt, with more room where thinking took it all."""
        wanted: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": TEMPERATURE if draw else 0.0,
            "max_tokens": self._max_tokens,
        }
        if draw:
            wanted["seed"] = draw
        if schema is not None:
            form = {"name": "form", "strict": True, "schema": dict(schema)}
            wanted["response_format"] = {"type": "json_schema", "json_schema": form}
        found = self._settled(wanted, waiting)
        room, more = wanted["max_tokens"], MORE_TOKENS * self._config.max_tokens
        if self._needs_room(found, schema is not None) and room < more:
            found, room = self._with_room(found, {**wanted, "max_tokens": more}, waiting), more
        if isinstance(found, Problem):
            if found.kind == "declined" or found.kind == "filtered":
                return NoAnswer(found.reason, found.kind, again=found.kind == "declined")
            return NoAnswer(found.reason)
        if found.is_cut and not _visible(found):
            what = "thinking" if found.has_thought or found.text.strip() else "an empty answer"
            return NoAnswer(f"{what} took all {room:,} tokens: raise max_tokens of the endpoint {self.where}")
        if not found.text.strip() and found.has_thought:
            return NoAnswer(f"only thinking and no answer from {self.where}", again=True)
        return CutOff(found.text) if found.is_cut else found.text

    def _needs_room(self, found: Answer | Problem, is_form: bool) -> bool:
        return isinstance(found, Answer) and found.is_cut and (is_form or not _visible(found))

    def _with_room(self, found: Answer | Problem, wanted: Mapping[str, Any], waiting: "Waiting") -> Answer | Problem:
        """Ask again with a higher limit, which is kept where it brings an answer."""
        longer = self._settled(wanted, waiting)
        if isinstance(longer, Problem):
            return longer if longer.kind in ("declined", "filtered") else found
        with self._lock:
            is_news = not longer.is_cut and self._max_tokens < wanted["max_tokens"]
            self._max_tokens = wanted["max_tokens"] if is_news else self._max_tokens
        if is_news:
            self._say(
                f"endpoint {self.where}: thinks longer than max_tokens, {self._max_tokens:,} are used from now on"
            )
        return longer

    def _settled(self, wanted: Mapping[str, Any], waiting: "Waiting") -> Answer | Problem:
        """Return the result of a call, once the endpoint is up and accepts it.

        Raises:
            EndpointError: As when called.
        """
        spoken, tried = dict(self._spoken), Tries()
        first: Problem | None = None
        while True:
            call = {name: value for key, value in wanted.items() if (name := spoken.get(key, key)) is not None}
            found = self._post(call)
            if isinstance(found, Answer) or found.kind in ("declined", "filtered"):
                self._remember(spoken, call, waiting)
                return found
            if found.kind in ("busy", "limited"):
                if self._is_at_fault(found, tried):
                    return replace(found, kind="failed")
                waiting.wait(f"endpoint {self.where}", found, tried)
            elif found.kind == "garbled" and not tried.was_garbled:
                tried.was_garbled = True
            elif found.kind == "refused" and (more := self._spoken_otherwise(found, wanted, spoken)):
                first, spoken = first or found, {**spoken, **more}
            elif found.kind == "wrong set-up" and self._answered_at < 0:
                raise EndpointError(self._what_to_do(found))
            else:
                before = first is not None and first.reason != found.reason
                told = f"{found.reason}; before that: {first.reason}" if first and before else found.reason
                return replace(found, kind="failed", reason=told)

    def _spoken_otherwise(
        self, refused: Problem, wanted: Mapping[str, Any], spoken: Mapping[str, str | None]
    ) -> dict[str, str | None]:
        """Return what to rename or leave out after a refusal; nothing where the parameters are not to blame.

        What the server names goes; where it names nothing, what it has not taken before: the schema first.
        """
        named = {
            spoken.get(key, key): key for key in wanted if key not in ("model", "messages") and spoken.get(key, key)
        }
        if refused.parameter is not None and refused.parameter in named:
            key = named[refused.parameter]
            if refused.parameter in self._taken:
                return {}  # it is about this prompt
            return {key: "max_completion_tokens" if refused.parameter == "max_tokens" else None}
        new = [key for name, key in named.items() if name not in self._taken]
        return dict.fromkeys(["response_format"] if "response_format" in new else new)

    def _remember(self, spoken: Mapping[str, str | None], call: Mapping[str, Any], waiting: "Waiting") -> None:
        """Keep what an answered call has shown of the endpoint."""
        waiting.answered()
        with self._lock:
            self._answered_at = time.monotonic()
            self._taken.update(call)
            news = {key: name for key, name in spoken.items() if key not in self._spoken}
            self._spoken.update(news)
        for key, name in news.items():
            how = "without it" if name is None else f"with {name}"
            self._say(f"endpoint {self.where}: does not take {key}, asked {how} from now on")

    def _is_at_fault(self, problem: Problem, tried: "Tries") -> bool:
        """Return whether a call that fails again and again does so because of its prompt: others are answered.

        After `MAX_RETRIES` a trial call finds out; the prompt gets one more chance, in case all is well again.
        """
        if tried.n == 0:
            tried.began = time.monotonic()
        if problem.kind == "limited":
            is_late = time.monotonic() - tried.began > self._config.outage_s
            return is_late and self._answered_at > tried.began
        if tried.n < MAX_RETRIES or tried.others_are_answered:
            return tried.others_are_answered
        trial = self._post({"model": self._config.model, "messages": [{"role": "user", "content": "Hello"}]})
        tried.others_are_answered = isinstance(trial, Answer)
        return False

    def _what_to_do(self, problem: Problem) -> str:
        """Return a message on a wrong key, model or address."""
        what, _, message = problem.reason.replace(f" from {self.where}", "", 1).partition(": ")
        variable = self._config.api_key_variable
        if what in ("HTTP 401", "HTTP 403", "HTTP 407"):
            hint = f"check the key; ${variable} is {'set' if os.environ.get(variable) else 'not set'}"
            hint += ", and the login was hidden when this configuration was stored" * self._address.is_hidden
        elif what in ("HTTP 404", "HTTP 405", "HTTP 410"):
            hint = f"check base_url, which mostly ends in /v1, and model {self._config.model!r}"
        else:
            hint = f"check base_url, the account, and model {self._config.model!r}"
        return f"endpoint {self.where}: {what}: {message}; {hint}"

    def _opened(self, key: str) -> Any:
        """Return the HTTP client; login and key go into its headers, so that no address holds them."""
        import httpx  # only runs that name an endpoint need it

        for name in ("httpx", "httpcore"):  # they log whole addresses and headers
            logging.getLogger(name).setLevel(logging.WARNING)
        authorization = self._address.authorization or (f"Bearer {key}" if key else None)
        if re.fullmatch(r"[\x20-\x7e]*", authorization or "") is None:
            raise EndpointError(
                f"${self._config.api_key_variable}: has characters that no key has, such as a line break; set it again"
            )
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            return httpx.Client(
                headers=headers | ({"Authorization": authorization} if authorization else {}),
                params=list(self._address.query),
                timeout=self._config.timeout_s,
                follow_redirects=True,
                limits=httpx.Limits(max_connections=None),
            )
        except (ValueError, ImportError) as error:  # of a proxy that the environment names
            why = without_secrets(" ".join(str(error).split()), self._secrets)
        raise EndpointError(f"proxy of the environment: {why}; correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY")

    def _post(self, call: Mapping[str, Any]) -> Answer | Problem:
        """Return the result of one call, without anything secret in it."""
        import httpx

        sent = [name for name in call if name not in ("model", "messages")]
        try:
            found = read_reply(self._sent(call), sent, self.where)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError) as error:
            found = _broken(error, self.where, self._answered_at >= 0)
        if isinstance(found, Answer):
            return found
        return replace(found, reason=without_secrets(" ".join(found.reason.split()), self._secrets))

    def _sent(self, call: Mapping[str, Any]) -> HttpReply:
        """Return the whole reply to a call."""
        body = bytearray()
        with self._client.stream("POST", self._address.url, content=json.dumps(call)) as reply:
            # The client's time-out is of each read: a server that sends a space now and then passes it for ever.
            deadline = time.monotonic() + self._config.timeout_s
            for chunk in reply.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole answer within {self._config.timeout_s:g} s")
                if len(body) > MAX_BODY_BYTES:
                    raise ValueError(f"a reply of more than {MAX_BODY_BYTES:,} bytes")
            headers = {name.lower(): value for name, value in reply.headers.items()}
            return HttpReply(reply.status_code, headers, bytes(body))


def by_reason(reasons: Sequence[str]) -> str:
    """Return how often each kind of reason occurs, with an example of each; the kind is the text before the colon."""
    kinds = Counter(reason.partition(": ")[0] for reason in reasons)
    examples = {reason.partition(": ")[0]: reason for reason in reversed(reasons)}
    return "; ".join(f"{n} × {examples[kind]}" for kind, n in kinds.most_common(3)) + ("; …" if len(kinds) > 3 else "")


def _visible(answer: Answer) -> str:
    """Return what of an answer is not thinking."""
    from rass_core.models.thinking import split_thinking  # the judges import this module

    return split_thinking(answer.text)[1]


def _broken(error: Exception, where: str, has_answered: bool) -> Problem:
    """Return what an exception of the HTTP client means."""
    causes = list(_causes(error))
    message = next((each for each in map(str, causes) if each.strip()), "")
    reason = f"{type(error).__name__} from {where}: {message[:200] or 'no reason given'}"
    # A name that no name server knows, or a wrong certificate, is no outage unless all was well before.
    is_wrong = any(
        isinstance(each, ssl.SSLError) or (isinstance(each, gaierror) and each.errno == EAI_NONAME) for each in causes
    )
    if is_wrong and not has_answered:
        return Problem("wrong set-up", reason)
    if isinstance(error, ValueError):
        return Problem("failed", f"{message} from {where}")
    return Problem("busy", reason)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
