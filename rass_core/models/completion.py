"""What a server of chat completions sends back: an answer, or what became of the call in its place.

Servers of the OpenAI kind agree on what an answer looks like and on little else: how they word that they take no
`temperature`, that a filter stopped a prompt, or that they are busy. All of that is read here, and nowhere else.
"""

import email.utils
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

OK = 200
REFUSED = (400, 404, 405, 415, 422, 501)
"""Statuses under which a server may refuse a parameter."""
FATAL = (401, 402, 403, 404, 405, 407, 410)
"""Statuses that mean a wrong key, model or address: asking again does not help."""
BUSY = (408, 409, 425, 429)
"""Statuses beside those from 500 on that may be gone in a while."""
SHOWN_CHARACTERS = 160
"""What is shown of a server's message."""

_FILTERED = re.compile(
    r"content[ _-]?(?:filter|policy|management)|responsible[ _]?ai|data[ _]?inspection|content[ _]?exists[ _]?risk"
    r"|high[ _-]risk|prohibited[ _]?content|(?:inappropriate|unsafe|sensitive|harmful) content|\bflagged\b|guardrails?"
    r"|safety[ _-](?:system|filter|setting|reason|check)|moderation|usage[ _-]polic|violat\w+ (?:\w+ ){0,3}polic"
    r"|polic\w+ violation|\b(?:prompt|response|input|output|content)s? (?:(?:was|were|is|has been) )?blocked\b"
    r"|敏感|不安全|违规",
    re.IGNORECASE,
)
_FILTERS = frozenset({
    "content_filter", "content-filter", "contentfilter", "safety", "prohibited_content", "blocklist", "recitation",
    "spii", "sensitive", "guardrail_intervened", "content_filtered", "moderation",
})  # fmt: skip
"""Reasons to finish that mean a filter."""
_WRONG_SET_UP = re.compile(
    r"invalid_api_key|insufficient_quota|model_not_found|billing|account_deactivated|insufficient balance"
    r"|exceeded your current quota|\bmodel\b.{0,80}(?:does not exist|not found)|no such model|unknown model",
    re.IGNORECASE,
)
_SIZE = re.compile(r"context|too (?:long|large|many)|exceed|longer than|maximum|at most", re.IGNORECASE)
"""A number of tokens is refused, and not the parameter."""
_UNSUPPORTED = re.compile(
    r"support|recogni[sz]|unknown|unexpected|extra|permitted|allowed|accept|invalid|not valid|deprecated|instead"
    r"|default|must be|should be|input should|cannot|can't|(?:not |un)available|not implemented|only|range|disabled"
    r"|ignored|no such",
    re.IGNORECASE,
)
_SYNONYMS = {"response_format": r"response[ _]format|json[ _]schema|structured[ _]outputs?|guided[ _]\w+"}


@dataclass(frozen=True)
class HttpReply:
    """What came over the wire, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Answer:
    """A chat completion."""

    text: str
    """May be empty: a model that only thought has none."""
    is_cut: bool = False
    """The limit of tokens ended it."""
    has_thought: bool = False
    """Its thinking came beside the text."""


@dataclass(frozen=True)
class Problem:
    """What became of a call that brought no answer."""

    kind: Literal["declined", "filtered", "refused", "busy", "limited", "wrong set-up", "garbled", "failed"]
    """declined: the model says no. filtered: so does a filter. refused: the call, as it is, for a parameter or for the
    prompt. busy, limited: not now. wrong set-up: never, with this key, model or address. garbled: no chat completion.
    failed: everything else."""
    reason: str
    parameter: str | None = None
    """refused: the one that the server names."""
    wait_s: float | None = None
    """busy, limited: the server asks to wait so long."""


@dataclass(frozen=True)
class _Said:
    """A server's error in the parts that servers give it."""

    message: str
    codes: str
    """Its code, type and the like, in one text."""
    parameter: str | None = None
    status: int | None = None
    """An error in a reply of status 200 may have one of its own."""


def read_reply(reply: HttpReply, sent: Sequence[str], where: str) -> Answer | Problem:
    """Return what a reply says.

    Args:
        reply: The reply, with any status.
        sent: Parameters of the call that it may refuse.
        where: Address of the server, for reasons.
    """
    try:
        fields = _fields(reply)
    except (ValueError, LookupError, RecursionError, TypeError, AttributeError):
        fields = None
    error = None if fields is None else _error_in(fields)
    if error is None and reply.status < 300:
        found = None if fields is None else _completion(fields, where)
        return found or Problem("garbled", f"no chat completion from {where}: {bytes(reply.body[:80])!r}")
    said = error or _Said(_plain(reply.body) if fields is None else _worded(fields), "")
    status = said.status if reply.status < 300 and said.status else reply.status
    return _problem(status, said, reply.headers, sent, where)


def _problem(status: int, said: _Said, headers: Mapping[str, str], sent: Sequence[str], where: str) -> Problem:
    """Return what an error means for this call and for others."""
    message = said.message[:SHOWN_CHARACTERS] or said.codes or "no reason given"
    reason = f"HTTP {status} from {where}: {message}"
    everything = f"{said.codes} {said.message}"
    if status not in (401, 407) and status < 500 and _FILTERED.search(everything):
        return Problem("filtered", reason)
    if _WRONG_SET_UP.search(everything):
        return Problem("wrong set-up", reason)
    parameter = _parameter(said, sent)
    if parameter is not None and (status in REFUSED or status >= 500 or status < 300):
        return Problem("refused", reason, parameter)
    if status in FATAL and not (status == 404 and "parameter" in message):
        return Problem("wrong set-up", reason)
    if status in BUSY or status >= 500:
        kind: Literal["limited", "busy"] = "limited" if status == 429 else "busy"
        return Problem(kind, reason, wait_s=_retry_after(headers))
    is_about_call = status in REFUSED and not _SIZE.search(said.message)
    return Problem("refused" if is_about_call else "failed", reason)


def _parameter(said: _Said, sent: Sequence[str]) -> str | None:
    """Return the parameter of the call that an error names as one that the server does not take."""
    if _SIZE.search(said.message):
        return None
    for name in sent:
        if said.parameter is not None and name in re.split(r"[^\w]+", said.parameter):
            return name
    if not _UNSUPPORTED.search(f"{said.codes} {said.message}"):
        return None
    found = [
        (match.start(), name)
        for name in sent
        if (
            match := re.search(
                rf"(?<!\w)(?:{_SYNONYMS.get(name, name.replace('_', '[ _]'))})(?!\w)", said.message, re.I
            )
        )
    ]
    return min(found)[1] if found else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; None where it asks for nothing that can be read."""
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        return max(0.0, float(milliseconds) / 1000 if milliseconds else float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _completion(fields: Mapping[str, Any], where: str) -> Answer | Problem | None:
    """Return the answer in a chat completion, or None where there is neither answer nor reason."""
    choices = fields.get("choices")
    if not isinstance(choices, list):
        return None
    if not choices:
        is_filtered = _FILTERED.search(json.dumps({key: value for key, value in fields.items() if "filter" in key}))
        return Problem("filtered", f"no choices from {where}") if is_filtered else None
    choice = choices[0]
    if not isinstance(choice, dict):
        return None
    message = choice.get("message")
    message = message if isinstance(message, dict) else {"content": choice.get("text")}
    finish = str(choice.get("finish_reason") or "").lower()
    if finish in _FILTERS:
        return Problem("filtered", f"finish_reason {finish} from {where}")
    text = _text(message.get("content"))
    refusal = message.get("refusal") or _refusal_part(message.get("content"))
    if (isinstance(refusal, str) and refusal.strip()) or finish == "refusal":
        return Problem("declined", " ".join(str(refusal or text or "").split())[:SHOWN_CHARACTERS])
    if text is None and '"filtered": true' in json.dumps(choice.get("content_filter_results")):
        return Problem("filtered", f"content_filter_results of {where}")
    has_thought = any(message.get(key) for key in ("reasoning_content", "reasoning", "reasoning_details", "thinking"))
    is_cut = finish in ("length", "max_tokens")
    if text is None and not (has_thought or is_cut):
        return None
    return Answer(text or "", is_cut, has_thought)


def _text(content: Any) -> str | None:
    """Return the text of a message's content, its parts joined; None where it has none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [
        part if isinstance(part, str) else part.get("text")
        for part in content
        if isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"))
    ]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


def _refusal_part(content: Any) -> str | None:
    """Return the part of a content that refuses."""
    parts = content if isinstance(content, list) else []
    found = [part for part in parts if isinstance(part, dict) and part.get("type") == "refusal"]
    return str(found[0].get("refusal") or found[0].get("text") or "refusal") if found else None


def _fields(reply: HttpReply) -> dict[str, Any]:
    """Return the JSON object of a body, also where it was streamed.

    Raises:
        ValueError: It is none, or in another encoding than it says.
    """
    charset = re.search(r"charset=\"?([\w-]+)", reply.headers.get("content-type", ""))
    is_other = charset is not None and charset.group(1).lower() not in ("utf-8", "utf8")
    text = reply.body.decode(charset.group(1)) if charset is not None and is_other else None
    start = reply.body.lstrip()[:5]
    if start.startswith((b"data:", b"event", b":")):
        return _streamed(text or reply.body.decode())
    fields = json.loads(reply.body if text is None else text, strict=False)
    if isinstance(fields, list) and len(fields) == 1:
        fields = fields[0]
    if not isinstance(fields, dict):
        raise ValueError("no object")
    return fields


def _streamed(text: str) -> dict[str, Any]:
    """Return the completion that the events of a stream make up."""
    message: dict[str, str] = {}
    finish = None
    for line in text.splitlines():
        event = line.removeprefix("data:").strip()
        if not line.startswith("data:") or event == "[DONE]":
            continue
        fields = json.loads(event)
        if "error" in fields:
            return dict(fields)
        for choice in fields.get("choices", [])[:1]:
            finish = choice.get("finish_reason") or finish
            part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            for key in ("content", "refusal", "reasoning_content", "reasoning"):
                if isinstance(part.get(key), str):
                    message[key] = message.get(key, "") + part[key]
    # A stream without its last event was cut off, so its text is no answer.
    choices = [{"message": message, "finish_reason": finish}] if finish else None
    return {"choices": choices}


def _error_in(fields: Mapping[str, Any]) -> _Said | None:
    """Return the error that an object holds, in whichever manner; None where it holds none."""
    choices = fields.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = fields.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if error is None and not choices and any(key in fields for key in ("detail", "errors")):
        error = fields.get("errors") or fields
    if error is None and fields.get("object") == "error":
        error = fields
    if isinstance(error, list):
        error = error[0] if error else None
    if isinstance(error, str):
        return _Said(" ".join(error.split()), str(fields.get("code") or ""))
    if not isinstance(error, dict):
        return None
    inner = error.get("innererror")
    inner = inner if isinstance(inner, dict) else {}
    codes = [error.get("code"), error.get("type"), error.get("status"), inner.get("code")]
    code = str(error.get("code"))
    status = int(code) if code in map(str, range(400, 600)) else None
    parameter = error.get("param") or error.get("parameter") or error.get("field")
    named = str(parameter) if parameter else None
    return _Said(_worded(error), " ".join(str(each) for each in codes if each), named, status)


def _worded(error: Mapping[str, Any]) -> str:
    """Return an error's message in one line."""
    metadata = error.get("metadata")
    parts = [error.get(key) for key in ("message", "msg", "detail", "error_description", "title")]
    if isinstance(metadata, dict):
        parts += [metadata.get("raw"), metadata.get("reasons")]
    return " ".join("; ".join(_told(part) for part in parts if part).split())


def _told(part: Any) -> str:
    """Return one part of a message; of a validator's list each place and what is wrong there, but not the input."""
    if isinstance(part, list):
        return "; ".join(map(_told, part))
    if isinstance(part, dict):
        place = ".".join(str(each) for each in part.get("loc") or [])
        return f"{place}: {part.get('msg') or part.get('message') or 'wrong'}"
    return str(part)


def _plain(body: bytes) -> str:
    """Return what a page or other text says, in one line."""
    text = body[:4000].decode(errors="replace")
    without_tags = re.sub(r"<(?:script|style)\b.*?(?:</(?:script|style)>|\Z)|<[^>]*>", " ", text, flags=re.S | re.I)
    return " ".join(without_tags.split())
