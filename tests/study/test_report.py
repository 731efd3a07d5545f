"""The report: every number in it comes from the document, and it reads well in a real browser."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plans import MLP, findings_of, setting_of, tiny_for

from bntool.cli.screen import plain
from bntool.report.charts import axis, draw, linear_ticks, log_ticks
from bntool.report.study_html import SIGNS, study_page
from bntool.report.study_markdown import study_markdown
from bntool.study.recommend import recommend
from bntool.study.study import Study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@functools.cache
def document() -> dict[str, Any]:
    setting = setting_of(MLP)
    plan = tiny_for(setting)
    found = tuple(findings_of(setting, plan).values())
    advice = recommend(plan, found, setting)
    study = Study(MLP, "digits", plan, found, advice, setting.data.notes, 99)
    return plain(study.to_dict())


class Balanced(HTMLParser):
    """Raises nothing: collects tags that do not close."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closes itself."""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    page = study_page(document())
    checker = Balanced()
    checker.feed(page)
    assert checker.wrong == []
    assert checker.open == []
    assert not re.search(r"(src|href)\s*=\s*['\"](https?:|//)", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_every_verdict_and_headline_is_on_the_first_screen() -> None:
    page = study_page(document())
    summary = page[: page.index("<section")]
    for claim in document()["claims"]:
        assert claim["question"] in summary
        assert all(escape(c) in summary for c in claim["conditions"] if c.startswith("So "))
        assert f"{SIGNS[claim['verdict']]} {claim['verdict']}" in summary
    assert len(document()["claims"]) == 7


def test_names_from_the_user_cannot_break_the_page() -> None:
    broken = json.loads(json.dumps(document()).replace("digits", "<b>&amp"))
    page = study_page(broken)
    assert "<b>&amp<" not in page
    assert "&lt;b&gt;&amp;amp" in page


def test_charts_are_well_formed_and_stay_inside() -> None:
    for claim in document()["claims"]:
        for chart in claim["charts"]:
            svg = re.search(r"<svg.*</svg>", draw(chart))
            if svg is None:
                continue
            root = ET.fromstring(svg[0])
            width, height = map(float, root.attrib["viewBox"].split()[2:])
            for circle in root.iter("circle"):
                assert -10 <= float(circle.attrib["cx"]) <= width + 10
                assert -10 <= float(circle.attrib["cy"]) <= height + 10


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0.0, 1.0) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert log_ticks(0.01, 1.0) == (0.01, 0.1, 1.0)
    assert log_ticks(0.1, 1.0) == (0.1, 0.2, 0.5, 1.0)
    assert log_ticks(1e-6, 1.0) == (1e-6, 1e-4, 1e-2, 1.0)
    flat = axis([0.5, 0.5], 0.0, 100.0)
    assert flat(0.5) == 50.0


def test_markdown_has_each_claim_with_its_deciding_effect() -> None:
    text = study_markdown(document())
    for claim in document()["claims"]:
        assert f"## {claim['number']}. {claim['question']}" in text
        for m in claim["measures"]:
            assert (f"**{m['name']}**" in text) == m["primary"]


def test_the_document_is_plain_json_and_consistent() -> None:
    found = json.loads(json.dumps(document(), allow_nan=False))
    assert found["schema_version"] == 1
    for claim in found["claims"]:
        primary = [m for m in claim["measures"] if m["primary"]]
        assert primary or claim["verdict"] == "inconclusive"
        assert all(m["level"] > 0.99 for m in primary if claim["claim"] != "cost")


def photograph(page: Path, image: Path, width: int, height: int, *extra: str) -> np.ndarray:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        f"--screenshot={image}",
        f"--user-data-dir={image.parent / 'profile'}",
        *extra,
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(image).convert("L"), dtype=float)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")


@needs_chromium
def test_a_browser_draws_it_light_and_dark(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(study_page(document()), encoding="utf-8")
    light = photograph(page, tmp_path / "light.png", 1280, 1600)
    dark = photograph(page, tmp_path / "dark.png", 1280, 1600, "--blink-settings=preferredColorScheme=0")
    assert light[5, 5] > 240
    assert dark[5, 5] < 60
    for pixels in (light, dark):
        ink = np.abs(pixels - pixels[5, 5]) > 60
        assert 0.005 < ink.mean() < 0.5, "text and lines, neither an empty page nor a black one"


@needs_chromium
def test_it_fits_a_phone(tmp_path: Path) -> None:
    """The page is not wider than the window: measured by the browser itself."""
    page = tmp_path / "report.html"
    script = (
        "<script>addEventListener('load', () => document.body.dataset.wide ="
        " document.documentElement.scrollWidth)</script></body>"
    )
    inner = study_page(document()).replace("</body>", script)
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    # headless Chromium has a least window width, so the phone is a frame of 390 pixels
    page.write_text(
        "<iframe id=f src=inner.html width=390 height=800 style='border:0'></iframe>"
        "<script>f.onload = () =>"
        " setTimeout(() => document.title = f.contentDocument.body.dataset.wide, 50)</script>",
        encoding="utf-8",
    )
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    dom = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout
    wide = re.search(r"<title>(\d+)</title>", dom)
    assert wide is not None, dom[:500]
    assert int(wide[1]) <= 390
