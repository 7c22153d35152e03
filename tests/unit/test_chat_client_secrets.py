"""Keys, logins and passwords of endpoints are sent and shown nowhere."""

import json
import logging

import pytest

from rass_core.errors import EndpointError
from rass_core.judges.llm import form as schema_of
from rass_core.models.chat_client import Endpoint
from rass_core.models.settings import EndpointConfig
from tests.chat_server import KEY_VARIABLE, Reply, chat, error, server

SCHEMA = schema_of(("refusal", "partial", "compliance"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, "key-1")


PASSWORD, TOKEN = "hunter2/&x", "tok-9f8e7d6c5b4a"


def test_a_login_and_a_query_are_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with server(lambda _: error(400, f"no, ann:{PASSWORD} with {TOKEN}, Basic YW5uOmh1bnRlcjIvJng=")) as served:
        host = served.url.removeprefix("http://")
        config = EndpointConfig(base_url=f"http://ann:hunter2%2F%26x@{host}?token={TOKEN}&v=2024-01-01", model="judge")
        ask = Endpoint(config, served.said.append)
        answer = ask(["a"], SCHEMA)[0]
    assert served.requests[0]["path"] == f"/v1/chat/completions?token={TOKEN}&v=2024-01-01"
    assert served.requests[0]["authorization"] == "Basic YW5uOmh1bnRlcjIvJng="
    shown = [
        repr(config), str(config), config.model_dump_json(), json.dumps(config.model_dump()), config.base_url,
        repr(config.model_copy(deep=True).model_dump()), repr(answer), str(ask.where), caplog.text, *served.said,
    ]  # fmt: skip
    assert f"http://***@{host}?token=***&v=***" in config.base_url
    for secret in ("hunter2", TOKEN, "YW5uOmh1"):
        assert not any(secret in each for each in shown), secret


@pytest.mark.parametrize(
    ("reply", "is_down"),
    [
        (error(401, "key-1-of-many is wrong: Bearer key-1-of-many"), False),
        (Reply("key-1-of-many", 500), False),
        (Reply("", 200), True),
    ],
)
def test_no_error_repeats_the_key(monkeypatch: pytest.MonkeyPatch, reply: Reply, is_down: bool) -> None:
    monkeypatch.setenv(KEY_VARIABLE, " key-1-of-many\n")
    with server(lambda _: reply) as served:
        url = "http://ann:hunter2@127.0.0.1:9/v1" if is_down else served.url
        with pytest.raises(EndpointError) as caught:
            served.endpoint(base_url=url, outage_s=0)(["a"])
    assert is_down or served.requests[0]["authorization"] == "Bearer key-1-of-many"
    error_ = caught.value
    assert "key-1-of-many" not in str(error_) and "hunter2" not in str(error_)
    assert error_.__cause__ is None and (error_.__context__ is None or error_.__suppress_context__)


@pytest.mark.parametrize("key", ["key\nX-Evil: 1", "schlüssel-1"])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with server(lambda _: chat("fine")) as served, pytest.raises(EndpointError, match="no key has") as caught:
        served.endpoint()
    assert key not in str(caught.value) and "Evil" not in str(caught.value)


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with server(lambda _: chat("fine")) as served:
        served.endpoint()(["a"])
    assert served.requests[0]["authorization"] is None


def test_a_proxys_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    config = EndpointConfig(base_url="http://example.invalid/v1", model="judge", outage_s=0)
    with pytest.raises(EndpointError) as caught:
        Endpoint(config)(["a"])
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("HTTP_PROXY", "gopher://ann:hunter2@127.0.0.1:9")
    with pytest.raises(EndpointError, match="proxy of the environment") as caught:
        Endpoint(config)
    assert "hunter2" not in str(caught.value)
