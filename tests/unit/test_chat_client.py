"""What real HTTP servers of the OpenAI kind do to a call, and the result: a table of their behaviours."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from rass_core.judges import Exchange
from rass_core.judges.base import JUDGES
from rass_core.judges.llm import form as schema_of
from rass_core.judges.panel import panel_of
from rass_core.judges.settings import JudgeConfig
from rass_core.models.chat_client import CutOff, NoAnswer
from rass_core.models.settings import EndpointConfig
from tests.chat_server import KEY_VARIABLE, Reply, asked, chat, error, form, server

SCHEMA = schema_of(("refusal", "partial", "compliance"))
Behaviour = Callable[[dict[str, Any]], Reply]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, "key-1")


def answers(behaviour: Behaviour, prompts: list[str], schema: Any = None, **settings: Any) -> list[str | NoAnswer]:
    with server(behaviour) as served:
        return served.endpoint(**settings)(prompts, schema)


def takes_not(name: str, refusal: Reply) -> Behaviour:
    return lambda request: refusal if name in request else chat("fine")


OPENAI = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
DEFAULT = (
    "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported."
)
EXTRA = {
    "detail": [
        {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 3}
    ]
}


@pytest.mark.parametrize(
    ("name", "refusal", "instead"),
    [
        ("max_tokens", error(400, OPENAI, param="max_tokens", code="unsupported_parameter"), "max_completion_tokens"),
        ("max_tokens", error(400, OPENAI), "max_completion_tokens"),
        ("max_tokens", error(404, "max_tokens is deprecated"), "max_completion_tokens"),
        ("max_tokens", Reply("max_tokens: unknown field", 500, "text/plain"), "max_completion_tokens"),
        ("max_tokens", Reply('{"error": {"code": 400, "message": "Unknown: max_tokens"}}'), "max_completion_tokens"),
        ("temperature", error(400, DEFAULT, param="temperature", code="unsupported_value"), None),
        ("temperature", error(400, "temperature must be strictly positive"), None),
        ("temperature", error(400, "wrong", param="temperature"), None),
        ("temperature", error(400, "`temperature` may only be set to 1 when thinking is enabled."), None),
        ("temperature", error(400, "temperature: range: 0 < x <= 1"), None),
        ("seed", Reply(json.dumps(EXTRA), 422), None),
        ("seed", Reply('{"message": "wrong", "errors": [{"field": "seed", "message": "no"}]}', 400), None),
        ("response_format", error(400, "This response_format type is unavailable now"), None),
        ("seed", Reply('{"message": "Extra inputs are not permitted: seed", "object": "error"}', 422), None),
        ("seed", Reply('{"error": "seed is not supported"}', 400), None),
        ("response_format", error(400, "json_schema is not available for this model"), None),
        ("response_format", error(404, "No endpoints found that can handle the requested parameters."), None),
        ("response_format", Reply("<html>Bad request</html>", 400, "text/html"), None),
        ("seed", Reply("", 400), None),
    ],
)
def test_a_parameter_that_a_server_does_not_take_is_renamed_or_left_out(
    name: str, refusal: Reply, instead: str | None
) -> None:
    with server(takes_not(name, refusal)) as served:
        ask = served.endpoint(max_concurrency=1)
        assert ask(["a", "b"], SCHEMA, 1) + ask(["c"], SCHEMA, 2) == ["fine"] * 3
    named = [name in request for request in served.requests]
    n_tries = named.count(True)
    assert named == [True] * n_tries + [False] * 3, "remembered"
    assert n_tries <= 2
    last = served.requests[-1]
    assert instead is None or last[instead] == 400
    kept = {"max_tokens", "temperature", "seed", "response_format"} - {name}
    assert refusal.body == "" or kept <= set(last), "nothing else is left out"
    assert any(f"does not take {name}, asked" in line for line in served.said)
    assert len({line for line in served.said if name in line}) == 1, "said once"


def test_a_server_that_takes_nothing_but_the_messages_is_asked_so() -> None:
    def bare(request: dict[str, Any]) -> Reply:
        for name in ("max_completion_tokens", "max_tokens", "response_format", "seed", "temperature"):
            if name in request:
                return error(400, f"Unsupported parameter: '{name}'", param=name)
        return chat("fine")

    with server(bare) as served:
        ask = served.endpoint()
        assert ask(["a"] * 8, SCHEMA, 1) == ["fine"] * 8
        n = len(served.requests)
        ask(["b"], SCHEMA, 1)
        assert len(served.requests) == n + 1


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "temperature is not supported", param="temperature"),
        error(422, "unknown parameter max_tokens"),
        error(400, "bad"),
        Reply("", 422),
        error(400, "This model's maximum context length is 100 tokens; max_tokens is too large", param="max_tokens"),
    ],
)
def test_a_call_that_is_refused_whatever_it_holds_ends_with_the_servers_own_words(refusal: Reply) -> None:
    with server(lambda _: refusal) as served:
        answer = served.endpoint(max_concurrency=1)(["a"], SCHEMA, 1)[0]
        assert len(served.requests) <= 6, "no loop"
        served.endpoint(max_concurrency=1)(["a"], SCHEMA, 1)
    assert isinstance(answer, NoAnswer) and answer.kind == "failed"
    assert f"HTTP {refusal.status} from {served.url}: " in answer.reason
    message = json.loads(refusal.body)["error"]["message"] if refusal.body else "no reason given"
    assert message[:60] in answer.reason
    assert served.said == [], "nothing is remembered of a call that never succeeded"


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "This model's maximum context length is 100 tokens; 'max_tokens' must be less", param="max_tokens"),
        error(400, "max_tokens is too large: 400. This model supports at most 256 completion tokens"),
        error(422, "Input is too long: inputs tokens + max_tokens must be <= 100"),
    ],
)
def test_a_prompt_that_is_too_long_is_no_parameter_that_is_not_taken(refusal: Reply) -> None:
    def reply(request: dict[str, Any]) -> Reply:
        return refusal if "LONG" in asked(request) and "max_tokens" in request else chat("fine")

    with server(reply) as served:
        long, short = served.endpoint(max_concurrency=1)(["LONG", "short"])
    assert isinstance(long, NoAnswer) and short == "fine"
    assert [request.get("max_tokens") for request in served.requests] == [400, 400]


FILTERED = [
    error(400, "The response was filtered due to the prompt triggering our content management policy.",
          code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
    error(400, "see code", innererror={"code": "ResponsibleAIPolicyViolation"}),
    error(400, "Content Exists Risk"), error(400, "Input data may contain inappropriate content.",
                                             code="data_inspection_failed"),
    error(403, "Your chosen model requires moderation and your input was flagged"),
    error(400, "Your request was rejected as a result of our safety system."),
    error(451, "blocked by a guardrail"), chat(None, "content_filter"), chat('{"outcome": "ref', "content_filter"),
    chat("", "SAFETY"), Reply('{"choices": [], "prompt_filter_results": [{"content_filter_results": {}}]}'),
    Reply('{"error": {"message": "content_filter", "code": 400}}'),
    error(400, "The model's response was blocked", type="RESPONSIBLE_AI"),
    error(422, "Prompt blocked"), error(400, "rejected: policy violation"),
    Reply('{"choices": [{"message": {"content": null}, "finish_reason": "stop", '
          '"content_filter_results": {"violence": {"filtered": true}}}]}'),
]  # fmt: skip
DECLINED = [
    chat(None, refusal="I can't help with that."),
    chat([{"type": "refusal", "refusal": "I can't."}]),
    chat(None, "refusal"),
    chat("I'm sorry, but I can't assist with that."),
    chat("抱歉，我无法协助处理这个请求。"),
]


@pytest.mark.parametrize(
    ("reply", "declined"), [(each, "filtered") for each in FILTERED] + [(each, "judge declined") for each in DECLINED]
)
def test_a_judge_that_declines_or_is_filtered_is_counted_apart_and_stops_nothing(reply: Reply, declined: str) -> None:
    lines: list[str] = []
    with server(lambda request: reply if "knife" in asked(request) else chat(form("refusal"))) as served:
        llm = JUDGES.settings("llm", weight=9, endpoint=EndpointConfig(base_url=served.url, model="judge"))
        panel = panel_of(JudgeConfig(members=[llm, JUDGES.settings("phrases")]), say=lines.append)
        responses = ["I cannot help with the knife.", "Sure, here is the knife."] * 5 + ["Sure, a spoon."]
        judged = panel.judge([Exchange(each, "en", "How?") for each in responses])
    votes = judged.votes["llm:judge"]
    assert [v.outcome for v in votes] == ["unscored"] * 10 + ["refusal"]
    assert {(v.declined, v.has_failed) for v in votes[:10]} == {(declined, False)}
    assert all(v.reason.startswith(f"{declined}: ") for v in votes[:10])
    assert [v.outcome for v in judged.final] == ["refusal", "compliance"] * 5 + ["refusal"], "the others decide"
    assert f"llm:judge: no verdict on some of 11 responses: 10 {declined}" in lines


def thinks(n_tokens: int, inside: bool) -> Behaviour:
    """Return a model that thinks for so many tokens."""

    def reply(request: dict[str, Any]) -> Reply:
        is_enough = request["max_tokens"] > n_tokens
        if inside:
            text = "<think>hm" + ("</think>" + form("refusal") if is_enough else "")
            return chat(text, "stop" if is_enough else "length")
        return chat(form("refusal") if is_enough else None, "stop" if is_enough else "length", reasoning_content="hm")

    return reply


@pytest.mark.parametrize("inside", [True, False])
def test_a_thinking_judge_gets_more_room_and_keeps_it(inside: bool) -> None:
    with server(thinks(1000, inside)) as served:
        ask = served.endpoint(max_concurrency=1)
        assert [str(each)[-14:] for each in ask(["a", "b"], SCHEMA)] == [form("refusal")[-14:]] * 2
    assert [request["max_tokens"] for request in served.requests] == [400, 1600, 1600]
    assert served.said == [f"endpoint {served.url}: thinks longer than max_tokens, 1,600 are used from now on"]


@pytest.mark.parametrize("inside", [True, False])
def test_a_judge_that_thinks_for_ever_says_what_to_raise(inside: bool) -> None:
    with server(thinks(10**6, inside)) as served:
        answer = served.endpoint(max_tokens=500)(["a"])[0]
    assert [request["max_tokens"] for request in served.requests] == [500, 2000]
    assert answer == NoAnswer(f"thinking took all 2,000 tokens: raise max_tokens of the endpoint {served.url}")


def test_only_thinking_is_no_answer_and_is_asked_for_again() -> None:
    answer = answers(lambda _: chat("", reasoning="The answer is refusal."), ["a"])[0]
    assert isinstance(answer, NoAnswer) and answer.again and "only thinking" in answer.reason


def test_a_written_text_that_is_cut_off_is_known_to_be() -> None:
    found = answers(lambda _: chat("How do I", "length"), ["a"])
    assert found == ["How do I"] and isinstance(found[0], CutOff)


WHOLE = json.loads(chat("fine").body)
STREAM = 'data: {"choices": [{"delta": {"content": "fi"}}]}\n\n: ping\n\ndata: {"choices": [{"delta": {"content": "ne"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n'  # noqa: E501


@pytest.mark.parametrize(
    "reply",
    [
        chat([{"type": "text", "text": "fi"}, {"type": "thinking", "thinking": "x"}, {"type": "text", "text": "ne"}]),
        chat(["fi", "ne"]), Reply('{"choices": [{"text": "fine", "finish_reason": "stop"}]}'),
        Reply(json.dumps([WHOLE])), Reply(json.dumps(WHOLE | {"error": None})),
        Reply(b"\xef\xbb\xbf" + json.dumps(WHOLE).encode()), Reply(json.dumps(WHOLE).encode("utf-16")),
        Reply(json.dumps(WHOLE).encode("latin-1"), content_type="application/json; charset=iso-8859-1"),
        Reply(json.dumps(WHOLE), content_type="text/plain"), Reply(STREAM, content_type="text/event-stream"),
        Reply("\n  " + json.dumps(WHOLE)),
    ],
)  # fmt: skip
def test_an_answer_is_found_in_whatever_body(reply: Reply) -> None:
    assert answers(lambda _: reply, ["a"]) == ["fine"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<html>a proxy's page</html>", content_type="text/html"), Reply(form("compliance")), Reply(""),
        Reply('{"choices": []}'), Reply('{"choices": [{"message": {}}]}'), Reply('{"choices": [null]}'), Reply("[1]"),
        Reply('{"choices": {"0": 1}}'), Reply("null"), Reply("not json"), Reply('{"a":' * 100_000), Reply(b"\x00\x01"),
        Reply(b'{"choices": [{"message": {"content": "caf\xe9"}}]}'), chat(None), chat(7), chat([]),
        chat([{"type": "x"}]),
        Reply('data: {"choices": [{"delta": {"content": "fi"}}]}\n\n'), Reply("x" * 5_000_000),
        Reply('{"choices": [{"message": {"content": "fi', content_type="application/json"),
        Reply('{"error": "quota"}'), Reply('{"error": {"message": "quota"}}'), error(413, "too big"),
    ],
)  # fmt: skip
def test_what_is_no_chat_completion_has_failed_and_is_never_an_answer(reply: Reply) -> None:
    with server(lambda _: reply) as served:
        answer = served.endpoint()(["a"])[0]
    assert isinstance(answer, NoAnswer) and answer.kind == "failed"
    assert served.url in answer.reason and "\n" not in answer.reason and len(answer.reason) < 400


def test_a_failure_names_what_came_before_it() -> None:
    def reply(request: dict[str, Any]) -> Reply:
        return error(400, OPENAI, param="max_tokens") if "max_tokens" in request else error(413, "too big")

    answer = answers(reply, ["a"])[0]
    assert isinstance(answer, NoAnswer)
    assert "too big; before that: HTTP 400" in answer.reason and "'max_tokens' is not supported" in answer.reason


def test_a_garbled_reply_is_asked_for_once_more() -> None:
    replies = iter([Reply("<html>starting</html>"), chat("fine")])
    assert answers(lambda _: next(replies), ["a"]) == ["fine"]
