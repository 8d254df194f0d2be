"""The report: nothing is lost by thinning out, everything is escaped, and a real browser shows it without a fault."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from array import array
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from recorded_run import Recorded

from flash_launch.cli import main
from flash_launch.report.curves import Curve, smoothed, thinned
from flash_launch.report.drawing import linear_ticks, log_ticks, step_ticks
from flash_launch.report.making import read_report
from flash_launch.report.page import render_page

NASTY = '<script>alert(1)</script> & "it\'s" </title> $x_1$ \\u0041'


def curve(values: list[float]) -> Curve:
    return Curve(array("q", range(1, len(values) + 1)), array("d", values))


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    values = [math.sin(step / 3000) for step in range(1_000_000)]
    values[123_456], values[654_321] = 50.0, -70.0
    values[777_000:777_900] = [math.nan] * 900
    thin = thinned(curve(values))
    assert len(thin) <= 710
    kept = dict(zip(thin.steps, thin.values, strict=True))
    assert (kept[123_457], kept[654_322]) == (50.0, -70.0)
    assert {1, 1_000_000} <= set(kept)
    assert any(math.isnan(value) for value in thin.values)
    assert list(thin.steps) == sorted(set(thin.steps))
    few = curve([1.0, 2.0])
    assert thinned(few) is few


def test_smoothing_starts_right_and_begins_anew() -> None:
    assert list(smoothed(curve([3.0] * 50)).values) == pytest.approx([3.0] * 50)
    stepped = smoothed(curve([1.0] * 100 + [9.0] * 100), breaks=[100])
    assert stepped.values[99:101].tolist() == pytest.approx([1.0, 9.0])
    assert math.isnan(smoothed(curve([1.0, math.nan, 1.0])).values[1])


def test_a_row_that_was_written_twice_is_drawn_once() -> None:
    line = Curve()
    for step, value in ((1, 1.0), (2, 2.0), (2, 3.0), (1, 4.0), (3, 5.0)):
        line.add(step, value)
    assert (list(line.steps), list(line.values)) == ([1, 2, 3], [1.0, 2.0, 5.0])


def test_ticks_are_round_and_within() -> None:
    assert linear_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(0.0, 3e-7) == pytest.approx([0.0, 1e-7, 2e-7, 3e-7])
    assert linear_ticks(5.0, 5.0) == [5.0]
    assert log_ticks(0.001, 1000.0) == pytest.approx([1e-3, 1e-1, 1e1, 1e3])
    assert log_ticks(0.3, 40.0) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert list(step_ticks(3, 6)) == [0, 1, 2, 3]
    assert step_ticks(100_000, 4)[-1] == 100_000
    for low, high in ((-3.7, 12.1), (1e-9, 1e-3), (9.99e8, 1e9)):
        ticks = linear_ticks(low, high)
        assert 2 <= len(ticks) <= 8
        assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)


@pytest.fixture
def failed(tmp_path: Path) -> Recorded:
    """A run that was stopped, resumed, had a NaN and failed, with names that are meant to break a page."""
    config = {"max_epochs": 12, "data": NASTY}
    run = Recorded(tmp_path / "r <b> & 'q'", phases=((NASTY, 0, 100), ("unfrozen", 2, 1000)), config=config)
    run.attempt()
    run.train(1, 10)
    for step in (4, 10):
        run.event("checkpoint", step + 0.5, step=step, epoch=1, name=f"step_{step}", bytes=2e6, stall=0.01)
    run.end(75, at=11)
    run.attempt(2, at=50.0, step=10, host=NASTY)
    run.event("resume", 51.0, step=10)
    run.train(11, 45, at=50)
    run.train(46, 46, at=50, loss=float("nan"))
    run.end(1, number=2, at=120, verdict=f"rank 1 (node 0) failed first: {NASTY}\n  log: {NASTY}")
    (run.path / "checkpoints/step_10").mkdir(parents=True)
    return run


def test_page_and_picture_of_a_failed_run(failed: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(failed.path)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (failed.path / "report.html").read_text()
    assert page.count("<script") == 2  # its own two, none of a name's
    for part in ("alert(1)", "<b>"):
        assert f"<script>{part}" not in page
    assert not re.search(r"""(src|href|url)\s*[=(]""", page)
    assert "http" not in page.replace("http-equiv", "")
    text = unescape(page)
    for part in (NASTY, "attempt 2 on", "step_10", "stopped, saved", "not a finite number from step 46 on"):
        assert part in text
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2 * 6  # phases, loss, accuracy, rate, memory, speed, each wide and narrow
    for chart in charts:
        tree = ElementTree.fromstring(chart)  # well-formed, so names in it are escaped
        assert "NaN" not in "".join(str(element.get("d")) for element in tree.iter())
    strip = ElementTree.fromstring(charts[0])
    kinds = [str(element.get("class")).split()[0] for element in strip]
    assert [kinds.count(kind) for kind in ("band", "transition", "saved", "restart", "failure")] == [2, 1, 2, 1, 1]
    with Image.open(failed.path / "report.png") as picture:
        picture.load()
        assert picture.size[0] > 1200


def test_data_in_the_page_are_those_of_the_run(failed: Recorded) -> None:
    page = render_page(read_report(failed.folder))
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    loss = data["panels"][0]["lines"][0]
    assert (loss["steps"][:2], loss["shown"][:2], loss["shown"][-1]) == ([1, 2], ["1", "0.5"], "NaN")
    assert [band["name"] for band in data["bands"]] == [NASTY, "unfrozen"]
    assert [(band["start"], band["end"]) for band in data["bands"]] == [(0, 8), (8, 46)]


def test_a_run_without_data_says_so(tmp_path: Path) -> None:
    run = Recorded(tmp_path / "run")
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "No data yet" in page
    assert "<svg" not in page
    (run.path / "plan.json").unlink()
    (run.path / "config.yaml").write_text("{ no yaml")
    (run.path / "events.jsonl").write_text("[1]\nnull\n{}\n")
    (run.path / "metrics.jsonl").write_text('[1]\n{"kind": "step"}\n"kind": "epoch"\n')
    assert main(["report", str(run.path)]) == 0


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    run = Recorded(tmp_path / "run", config={"max_epochs": 3})
    run.attempt()
    row = '{{"step": {0}, "epoch": 0, "phase": "frozen", "kind": "step", "loss": {1}, "lr": [1e-3, 1e-4]}}\n'
    with run.folder.metrics_jsonl.open("w") as file:
        file.writelines(row.format(step, 2 + math.sin(step)) for step in range(1, 60_001))
    for step in range(100, 60_000, 100):
        run.event("checkpoint", step, step=step, name=f"step_{step}", bytes=1)
    assert len(render_page(read_report(run.folder))) < 200_000


def test_digests_that_differ_are_told(tmp_path: Path) -> None:
    run = Recorded(tmp_path / "run")
    run.attempt()
    run.train(1, 16)
    for digests, says in (({"0": "a" * 64, "1": "a" * 64}, "All 2 ranks"), ({"0": "a" * 64, "1": "b" * 64}, "differ")):
        run.write("summary.json", {"status": "finished", "parameter_digest": digests})
        assert says in read_report(run.folder).digests


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "x.pdf"], "must end with .html"),
        (["--to", "nowhere/x.html"], "there is no folder"),
        (["--png", "folder.png"], "which is a folder"),
    ],
)
def test_targets_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    Recorded(tmp_path / "run")
    assert main(["report", "run", *options]) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("report*"))


_PROBE = """<script>addEventListener("load", () => {
  const svg = document.querySelectorAll("[data-panel='0'] svg.WHICH")[0];
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 60}));
  const told = {
    loaded: performance.getEntriesByType("resource").map((one) => one.name),
    tip: document.getElementById("tip").innerText,
    crosses: [...document.querySelectorAll(".cross")].filter((one) => one.style.opacity > 0).length,
    shown: [...document.querySelectorAll("svg")].filter((one) => one.getBoundingClientRect().width > 0).length,
    overflows: document.documentElement.scrollWidth > innerWidth,
    verdict: document.querySelector(".verdict").textContent,
    tables: document.querySelectorAll("table").length,
    scripts: document.scripts.length,
  };
  document.body.insertAdjacentHTML("beforeend", "<pre id=told></pre>");
  document.getElementById("told").textContent = JSON.stringify(told);
});</script></body>"""


@pytest.mark.parametrize(("which", "width"), [("wide", 1280), ("narrow", 500)])
def test_a_real_browser_shows_it(failed: Recorded, tmp_path: Path, which: str, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("NO BROWSER: chromium is not installed, so nobody looked at the report page")
    page = render_page(read_report(failed.folder))
    target = tmp_path / "probe.html"
    target.write_text(page.replace("</body>", _PROBE.replace("WHICH", which)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--window-size={width},1400", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    answer = subprocess.run(
        [chromium, *flags, "--enable-logging=stderr", "--dump-dom", target.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "CONSOLE" not in answer.stderr  # no error, no warning, nothing refused by the page's policy
    found = re.search(r'<pre id="told">(.*?)</pre>', answer.stdout)
    assert found is not None, answer.stderr[-2000:]
    told = json.loads(unescape(found[1]))
    assert told["loaded"] == []  # no request
    assert told["tip"].startswith("step 2")
    assert "loss of a step" in told["tip"]
    assert (told["crosses"], told["shown"], told["tables"], told["scripts"]) == (12, 6, 3, 3)
    assert not told["overflows"]
    assert NASTY in told["verdict"]


def test_times_of_attempts_add_up(failed: Recorded) -> None:
    report = read_report(failed.folder)
    assert next(tile.value for tile in report.tiles if tile.label == "time") == "1 min 21 s"
