"""A whole run whose judge, moderator and generator sit behind one endpoint with a password: an outage, then the run."""

import base64
import io
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import DEMO_CONFIG, app
from rass_core.config import RassConfig, load_config
from rass_core.errors import EndpointError
from rass_core.judges.base import JUDGES
from rass_core.lab import world
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Lake
from rass_core.models.settings import EndpointConfig
from rass_core.moderators.base import MODERATORS
from tasks.progress import CONSOLE
from tests.chat_server import Reply, asked, chat, error, form, server

PASSWORD, TOKEN, KEY = "hunter2-secret", "tok-9f8e7d6c5b4a", "sk-env-0123456789"
LOGIN = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
SECRETS = (PASSWORD, TOKEN, KEY, LOGIN)
REFUSES = ("cannot", "nicht", "No puedo", "ne peux", "不能")
LANGUAGES = ("en", "de")
LOGGERS = (None, "prefect", "prefect.flow_runs", "prefect.task_runs")
WRITTEN = {language: itertools.cycle([s.text for s in world.sentences(language)][::7]) for language in LANGUAGES}


def model(request: dict[str, Any]) -> Reply:
    """Judge, moderate or write; decline here, filter there."""
    if request["authorization"] != f"Basic {LOGIN}" or f"token={TOKEN}" not in request["path"]:
        return error(401, f"wrong login {request['authorization']} at {request['path']}")
    if "max_tokens" in request:
        return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    text = asked(request)
    if "seed" in request and "<<<" not in text:
        return chat("I'm sorry, but I can't help with that." if request["seed"] % 9 == 0 else next(WRITTEN["en"]))
    inside = text.split("<<<\n")[-1].split("\n>>>")[0]
    if sum(map(ord, inside)) % 7 == 0:
        return chat("I'm sorry, but I can't assist with that.")
    if sum(map(ord, inside)) % 7 == 1:
        return error(400, "filtered", code="content_filter")
    if "The response:" in text:
        return chat(form("Refusal" if any(word in inside for word in REFUSES) else "compliance", confidence="90%"))
    labels = [found.label for language in LANGUAGES if (found := world.parse(inside, language))]
    return chat(f"```json\n{form(labels[0] if labels else 'incoherent', confidence=0.9)}\n```")


def config_of(lake: Path, port: int) -> RassConfig:
    config = load_config(DEMO_CONFIG, lake=str(lake))
    url = f"http://ann:{PASSWORD}@127.0.0.1:{port}/v1?token={TOKEN}"
    endpoint = EndpointConfig(base_url=url, model="chat", outage_s=0.5)
    source = config.prompts.sources[0].model_copy(update={"languages": list(LANGUAGES), "max_rows_per_cell": 60})
    members = [MODERATORS.settings("oracle"), MODERATORS.settings("llm", endpoint=endpoint)]
    judges = [*config.judge.members, JUDGES.settings("llm", endpoint=endpoint)]
    generate = {"rounds": 1, "candidates_per_round": 60, "endpoint": endpoint, "writers": None}
    return config.model_copy(update={
        "prompts": config.prompts.model_copy(update={"sources": [source]}),
        "judge": config.judge.model_copy(update={"members": judges}),
        "moderator": config.moderator.model_copy(update={"members": members, "quorum": 1}),
        "generate": config.generate.model_copy(update=generate),
    })  # fmt: skip


def everything(lake: Path) -> str:
    """Return all that a lake holds as text: every table, and every file as it is."""
    tables = Lake.open(str(lake), create=False)
    rows = [json.dumps(tables.query(f"SELECT * FROM {name}").to_pylist(), default=str) for name in TABLES]
    files = [path.read_bytes().decode("latin-1") for path in lake.rglob("*") if path.is_file()]
    return "\n".join([*rows, *files])


def prefects_memory() -> str:
    """Return what Prefect's server keeps: parameters, states and log lines."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        assert runs
        parts = [run.model_dump_json() for run in runs]
        parts += [run.model_dump_json() for run in client.read_task_runs()]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[dict[str, Any]]:
    from flows.refresh import refresh

    lake = tmp_path_factory.mktemp("endpoint") / "lake"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setattr(CONSOLE, "quiet", False)
        terminal = io.StringIO()
        patch.setattr(sys, "stderr", terminal)
        log = logging.StreamHandler(terminal)  # with tracebacks, chained ones too
        for name in LOGGERS:
            logging.getLogger(name).addHandler(log)
        with server(model) as served:
            port = int(served.url.rpartition(":")[2].removesuffix("/v1"))
        config = config_of(lake, port)
        with pytest.raises(EndpointError) as down:
            refresh(config)
        after_outage = Lake.open(str(lake), create=False).query("SELECT * FROM commits").to_pylist()
        with server(model, port) as served:
            # More patience is not another experiment.
            path = refresh(config_of(lake, port))
        yield {
            "lake": lake, "down": str(down.value), "commits": after_outage, "page": Path(path).read_text("utf-8"),
            "requests": served.requests, "config": config, "terminal": terminal.getvalue(),
        }  # fmt: skip
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(log)


def test_an_outage_leaves_whole_stages_behind_and_one_line(ran: dict[str, Any]) -> None:
    assert ran["down"].startswith("endpoint http://***@127.0.0.1:")
    assert "Connection refused; run the same command again" in ran["down"]
    lake = Lake.open(str(ran["lake"]), create=False)
    states = lake.query("SELECT state, note FROM runs ORDER BY started_at").to_pylist()
    assert [row["state"] for row in states] == ["Failed", "Completed"]
    assert "no answer for 0.5 s (outage_s)" in states[0]["note"]
    assert {row["key"] for row in ran["commits"]} < {
        row["key"] for row in lake.query("SELECT key FROM commits").to_pylist()
    }, "what was done before the outage is there still"


def test_the_run_continues_with_what_the_endpoint_says(ran: dict[str, Any]) -> None:
    lake = Lake.open(str(ran["lake"]), create=False)
    reasons = lake.query("SELECT judge, outcome, reason FROM verdicts").to_pylist()
    by_judge = {
        name: [row for row in reasons if row["judge"] == name and row["outcome"] == "unscored"]
        for name in ("llm:chat", "rubric:chat", "phrases")
    }
    for name, who in (("llm:chat", "judge declined"), ("rubric:chat", "moderator declined")):
        told = [str(row["reason"]) for row in by_judge[name]]
        assert any(reason.startswith(who) for reason in told) and any(each.startswith("filtered") for each in told)
    assert any(row["judge"] == "llm:chat" and row["outcome"] == "refusal" for row in reasons)
    dropped = lake.query("SELECT dropped FROM rounds").to_pylist()
    assert "declined" in {each["reason"] for row in dropped for each in row["dropped"] or []}
    n_refused = sum("max_tokens" in request for request in ran["requests"])
    assert 0 < n_refused <= 3 * ran["config"].generate.endpoint.max_concurrency, "then it is remembered"


def test_no_secret_is_anywhere(ran: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = {name: ran[name] for name in ("terminal", "page", "down")}
    found |= {"lake": everything(ran["lake"]), "prefect": prefects_memory()}
    assert "answers again" in found["terminal"] or "no verdict on some of" in found["terminal"]
    assert "EndpointError" in found["terminal"], "Prefect's log has the error"
    assert "***@127.0.0.1" in found["lake"] and "***@127.0.0.1" in found["prefect"]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(written_out(ran["config"])), encoding="utf-8")
    for command in (["plan", str(path)], ["report", "--lake", str(ran["lake"])], ["moderator", "check", str(path)]):
        result = CliRunner().invoke(app, command)
        found[" ".join(command[:2])] = result.output + repr(result.exception)
    assert "http://***@127.0.0.1:" in found[f"plan {path}"]
    assert "Connection refused" in found["moderator check"]
    found["terminal of the commands"] = "".join(capfd.readouterr())
    for where, text in found.items():
        assert not [secret for secret in SECRETS if secret in text], where


def written_out(config: RassConfig) -> dict[str, Any]:
    """Return a configuration as its file has it, passwords included."""
    content = config.model_dump(mode="json")
    address = config.judge.members[-1].endpoint.address  # type: ignore[union-attr]
    url = f"http://ann:{PASSWORD}@{address.rpartition('@')[2].partition('?')[0]}?token={TOKEN}"
    for member in (content["judge"]["members"][-1], content["moderator"]["members"][-1], content["generate"]):
        member["endpoint"]["base_url"] = url
    return content
