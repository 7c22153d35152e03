"""Endpoints that are down, busy or broken: what is waited for, and what ends a batch."""

import itertools
import socket
import threading
from typing import Any

import pytest

from rass_core.errors import EndpointError, JudgeError
from rass_core.judges import Exchange
from rass_core.judges.base import JUDGES
from rass_core.judges.llm import form as schema_of
from rass_core.judges.panel import panel_of
from rass_core.judges.settings import JudgeConfig
from rass_core.models.chat_client import MAX_RETRIES, Endpoint, NoAnswer
from rass_core.models.completion import HttpReply, Problem, read_reply
from rass_core.models.retrying import GIVE_UP_AFTER
from rass_core.models.settings import EndpointConfig
from tests.chat_server import KEY_VARIABLE, Reply, asked, chat, error, form, server

SCHEMA = schema_of(("refusal", "partial", "compliance"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, "key-1")


def test_calls_under_way_when_a_server_goes_down_are_waited_for() -> None:
    """An answer to another call, after this one was sent, does not put this one at fault."""
    n_slow, quick_is_answered = itertools.count(1), threading.Event()

    def reply(request: dict[str, Any]) -> Reply:
        if asked(request) == "quick":
            quick_is_answered.set()
            return chat("fine")
        quick_is_answered.wait(10)
        # Down for the trial call too: of slow alone 5 calls would be asked.
        return Reply("", 503) if next(n_slow) <= 7 else chat("fine")

    with server(reply) as served:
        found = served.endpoint(max_concurrency=2, outage_s=60)(["slow", "quick"])
    assert found == ["fine", "fine"]
    assert any("answers again" in line for line in served.said)


def test_an_endpoint_that_comes_back_is_waited_for_and_said_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines: list[str] = []
    config = EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1", model="judge", outage_s=60)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.extend(Endpoint(config, said.append)(["a", "b"])))
    waits = threading.Event()

    class Said(list[str]):
        def append(self, line: str) -> None:
            lines.append(line)
            waits.set()

    said = Said()
    asking.start()
    assert waits.wait(30)
    with server(lambda _: chat("fine"), port):
        asking.join(30)
    assert found == ["fine", "fine"]
    assert "Connection refused; waiting up to 60 s for it" in lines[0]
    assert "answers again after" in lines[-1]
    assert len(lines) == 2, "once an outage"


DOWN = [Reply("<html>busy</html>", status, "text/html") for status in (429, 500, 502, 503, 529)]


@pytest.mark.parametrize("reply", [*DOWN, Reply("", after_s=9.0), Reply(chat("late").body, dribble_s=9.0)])
def test_an_outage_that_lasts_is_one_clear_line(reply: Reply) -> None:
    with server(lambda _: reply) as served, pytest.raises(EndpointError) as caught:
        served.endpoint(outage_s=0.6, timeout_s=0.3)(["p"] * 100)
    message = str(caught.value)
    assert message.startswith(f"endpoint {served.url}: no answer for 0.6 s (outage_s)")
    assert "same command" in message and "\n" not in message
    assert len(served.requests) < 40, "the batch ends early"


def test_a_server_that_asks_for_more_patience_than_there_is_ends_at_once() -> None:
    busy = Reply("{}", 429, headers={"Retry-After": "3600"})
    with server(lambda _: busy) as served, pytest.raises(EndpointError, match="asks to wait 60 min"):
        served.endpoint(outage_s=1000)(["a"])
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [({"retry-after": "7"}, 7), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after": "-3"}, 0),
     ({"retry-after": "x"}, None), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({}, None)],
)  # fmt: skip
def test_retry_after_is_read(headers: dict[str, str], wait_s: float | None) -> None:
    found = read_reply(HttpReply(429, headers, b"{}"), [], "here")
    assert isinstance(found, Problem)
    assert (found.kind, found.wait_s) == ("limited", wait_s)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_prompt_that_breaks_the_server_is_a_failed_row_and_no_outage(concurrency: int) -> None:
    def reply(request: dict[str, Any]) -> Reply:
        return Reply("{}", 500) if "POISON" in asked(request) else chat("fine")

    with server(reply) as served:
        found = served.endpoint(max_concurrency=concurrency, outage_s=600)(["POISON", "a", "b"])
    assert found[1:] == ["fine", "fine"]
    assert isinstance(found[0], NoAnswer) and "HTTP 500" in found[0].reason
    assert sum("POISON" in asked(request) for request in served.requests) == MAX_RETRIES + 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(401, "Incorrect API key provided"), ["HTTP 401: Incorrect", "check the key", f"${KEY_VARIABLE} is set"]),
        (Reply("<html>log in</html>", 403, "text/html"), ["HTTP 403: log in", "check the key"]),
        (error(404, "The model `judge` does not exist."), ["HTTP 404", "check base_url", "model 'judge'"]),
        (error(400, "model 'judge' not found, try pulling it first"), ["HTTP 400", "model 'judge'"]),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), ["HTTP 429", "account"]),
        (Reply('{"detail": "Not Found"}', 404), ["HTTP 404: Not Found", "mostly ends in /v1"]),
        (Reply("", 405), ["HTTP 405"]),
    ],
)
def test_a_wrong_key_model_or_address_is_said_at_once(reply: Reply, words: list[str]) -> None:
    with server(lambda _: reply) as served, pytest.raises(EndpointError) as caught:
        served.endpoint(outage_s=600)(["p"] * 50)
    assert all(word in str(caught.value) for word in [f"endpoint {served.url}: ", *words])
    assert len(served.requests) < 25, "far from all: those on their way when the first came back, and some"


def test_failures_in_a_row_end_the_batch_with_their_reasons() -> None:
    replies = iter([chat("fine")] + [Reply("{}", 413), error(400, "too long")] * 500)
    with server(lambda _: next(replies)) as served, pytest.raises(EndpointError) as caught:
        served.endpoint(max_concurrency=1)(["p"] * 500)
    assert f"{GIVE_UP_AFTER} calls failed in a row (10 × HTTP " in str(caught.value)
    assert len(served.requests) < 60


@pytest.mark.parametrize(("share", "stops"), [(0.0, True), (0.05, True), (0.1, False), (1.0, False)])
def test_the_share_of_failures_is_configured_and_its_message_counts_reasons(share: float, stops: bool) -> None:
    def reply(request: dict[str, Any]) -> Reply:
        text = asked(request)
        return error(400, "too long") if "n1." in text else chat("mumble" if "n2." in text else form("refusal"))

    with server(reply) as served:
        llm = JUDGES.settings("llm", endpoint=EndpointConfig(base_url=served.url, model="judge", max_concurrency=2))
        panel = panel_of(JudgeConfig(members=[llm, JUDGES.settings("phrases")], max_failed_share=share))
        exchanges = [Exchange(f"Here is n{i}.", "en", "How?") for i in range(20)]
        if stops:
            with pytest.raises(JudgeError, match=r"failed on 2 of 20 \(1 × .*; 1 × .*judge.max_failed_share") as caught:
                panel.judge(exchanges)
            assert "not on the form: 'mumble'" in str(caught.value) and "HTTP 400" in str(caught.value)
        else:
            votes = panel.judge(exchanges).votes["llm:judge"]
            assert [v.has_failed for v in votes] == [False, True, True] + [False] * 17
