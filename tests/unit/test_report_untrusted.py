"""The report shows text of prompts and models as text, runs none of it, and asks nothing of a network."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rass_core.report import write_report
from rass_core.report.template import sha256
from rass_core.report.words import hover_text
from tests.report_pages import (
    HOSTILE,
    RUN,
    TARGET,
    Page,
    hostile,
    hovers,
    plausible,
    render,
    tables,
    with_harm,
    words,
)


def test_hovers_show_prompts_and_nothing_shows_a_response(tmp_path: Path) -> None:
    out = write_report(tables(plausible()), tmp_path / "r.html", title="t", run=RUN, target=TARGET)
    source = out.read_text(encoding="utf-8")
    shown = [text.replace("<br>", " ") for text in hovers(Page(source))]
    assert any("(harmful, en" in text for text in shown)
    assert "ANSWER-TEXT" not in source


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    page = render(hostile(with_harm(plausible())), tmp_path, title=HOSTILE, target=f"{HOSTILE} {TARGET}")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert "a" not in tags
    assert page.scripts[2].lstrip().startswith('"use strict"')
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    said = words(page)
    assert "<img src=x onerror=" in said
    assert "{{ 7 * 7 }}" in said
    assert "\u202e" not in page.text
    allowed = re.compile(r"</?(b|i|br)>")
    texts = hovers(page)
    for figure in page.figures:
        texts += [trace.get("name") or "" for trace in figure["data"]]
        texts += [note["text"] for note in figure["layout"].get("annotations", [])]
        texts += [str(name) for trace in figure["data"] for name in trace.get("y", []) if isinstance(name, str)]
        assert not [trace for trace in figure["data"] if trace.get("hovertemplate")]
    assert texts
    for text in texts:
        assert "<" not in allowed.sub("", text), text
    assert any("&lt;img" in text for text in texts)


def test_a_hover_is_wrapped_shortened_and_escaped() -> None:
    shown = hover_text("word " * 200 + "<b>")
    lines = shown.split("<br>")
    assert max(map(len, lines)) <= 60
    assert len(html.unescape(" ".join(lines))) <= 240
    assert shown.endswith("…")
    assert max(map(len, hover_text("炸" * 100).split("<br>"))) <= 30
    assert hover_text("a<br>b & c") == "a&lt;br&gt;b &amp; c"
    assert hover_text("a\u202eb\x00c") == "a\ufffdb\ufffdc"


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    page = render(plausible(), tmp_path)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "base")
        assert not {"src", "href", "action"} & set(attributes)
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert all(f"'sha256-{sha256(script)}'" in policy for script in page.scripts[1:])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a headless Chromium")
def test_a_browser_draws_it_and_runs_nothing_of_a_prompt(tmp_path: Path) -> None:
    """The policy is taken out and every hover opened, so that only escaping protects the reader."""
    out = write_report(
        tables(hostile(plausible(("en",)))), tmp_path / "r.html", title="fine", run=RUN, target=f"{HOSTILE} {TARGET}"
    )
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", out.read_text(encoding="utf-8"))
    opened = """<script>window.onerror = (e) => { document.title = "error: " + e; };
    for (const element of document.querySelectorAll(".plot[data-drawn]")) {
      element.data.forEach((trace, n) => { if (trace.hoverinfo === "text") {
        const axes = (trace.xaxis || "x") + (trace.yaxis || "y");
        Plotly.Fx.hover(element, [{curveNumber: n, pointNumber: 0}], axes); } });
    }</script></body>"""
    (tmp_path / "open.html").write_text(source.replace("</body>", opened), encoding="utf-8")
    browser = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            (tmp_path / "open.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "<title>fine</title>" in browser.stdout
    drawn = Page(browser.stdout)
    assert sum("main-svg" in (attributes.get("class") or "") for _, attributes in drawn.elements) >= 6
    assert sum(attributes.get("class") == "hovertext" for _, attributes in drawn.elements) >= 1
    body = [
        (tag, attributes)
        for tag, attributes in drawn.elements
        if tag in ("img", "a") and "modebar" not in str(attributes)
    ]
    assert not [
        item
        for item in body
        if item[0] == "img" or "javascript:" in str(item[1].get("href") or item[1].get("xlink:href"))
    ]
