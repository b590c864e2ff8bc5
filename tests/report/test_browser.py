"""The page in a real browser: no errors, controls that work by mouse and keyboard, no overflow, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.report.build import write_report
from tests.report.chrome import CHROMIUM, Chrome
from tests.report.results import HOSTILE, bench, calibration, evaluation, trace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    files = []
    for number, data in enumerate([bench(HOSTILE), evaluation(HOSTILE), calibration(HOSTILE), trace(HOSTILE), trace()]):
        files.append(folder / f"{number}.json")
        files[-1].write_text(json.dumps(data))
    return write_report(files, folder / "report.html", title=HOSTILE)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = Chrome(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(chrome: Chrome, page: Path) -> Iterator[Chrome]:
    chrome.errors.clear()
    chrome.open(page)
    yield chrome
    assert chrome.errors == []
    assert chrome.run("window.hacked === undefined")
    assert chrome.run("document.images.length") == 0


def test_every_chart_is_drawn_with_axes_and_a_text(opened: Chrome) -> None:
    shown = "[...document.querySelectorAll('figure.chart')].filter(f => f.offsetParent)"
    count = opened.run(f"{shown}.length")
    assert count >= 5
    assert opened.run(f"{shown}.every(f => f.querySelector('svg[role=img][aria-label*=\"Axes: \"]'))")
    assert opened.run(f"{shown}.every(f => f.querySelector('.plot').querySelectorAll('polyline, circle').length > 0)")
    assert not opened.run(
        "[...document.querySelectorAll('svg *')].some(n => [...n.attributes].some(a => /NaN|Infinity/.test(a.value)))"
    )
    assert opened.run("[...document.querySelectorAll('.bars dd i')].some(bar => bar.clientWidth > 100)")


def test_legend_marks_are_those_of_the_plot(opened: Chrome) -> None:
    wrong = opened.run("""[...document.querySelectorAll('figure.chart')].filter(f => f.offsetParent).filter(figure => {
      const look = (group, mark) => [group.getAttribute('class'), mark.tagName === 'circle' ? 'dot' : 'line',
        mark.getAttribute('class')].join(' ');
      const kinds = root => new Set([...root].flatMap(group =>
        [...group.querySelectorAll('polyline, line, circle')].map(mark => look(group, mark))));
      const plot = kinds(figure.querySelectorAll('.plot g'));
      const legend = kinds([...figure.querySelectorAll('.legend svg')].filter(svg => !svg.querySelector('.cursor')));
      return plot.size === 0 || [...plot].sort().join() !== [...legend].sort().join();
    }).map(figure => figure.dataset.alt)""")
    assert wrong == []
    assert opened.run("document.querySelectorAll('figure[data-follow] .legend .cursor').length") == 4


@pytest.mark.parametrize("width", [390, 1280])
def test_no_two_texts_of_a_chart_touch(chrome: Chrome, tmp_path: Path, width: int) -> None:
    files = []
    for number in range(4):
        data = evaluation()
        data["settings"]["recipe"]["name"] = f"long name, number {number}"
        for arm, shift in (("dense", 0.0), ("sparse", 0.002)):
            data["summary"][arm] = {"j_and_f": 0.8 + number / 2000 + shift, "ms": 30.0 + number / 10 - 50 * shift}
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(data))
    chrome.open(write_report(files, tmp_path / "report.html"), width)
    names = chrome.run("[...document.querySelectorAll('figure.chart .label')].map(text => text.textContent)")
    assert len(names) >= 2 and all("number" in name for name in names)
    touching = chrome.run("""[...document.querySelectorAll('figure.chart svg')].flatMap(svg => {
      const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
      const room = svg.getBoundingClientRect();
      return texts.flatMap(([name, a], place) => [
        ...(a.left < room.left || a.right > room.right || a.bottom > room.bottom ? [[name, 'cut']] : []),
        ...texts.slice(place + 1).filter(([, b]) => a.left < b.right && b.left < a.right && a.top < b.bottom
          && b.top < a.bottom).map(([other]) => [name, other])]);
    })""")
    assert touching == []


def test_a_table_that_goes_on_shows_it(opened: Chrome, chrome: Chrome, page: Path) -> None:
    chrome.open(page, 390)
    edge = "document.querySelector('#wide').parentElement.classList"
    settle = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    chrome.run("[...document.querySelectorAll('.scroll')].find(box => /sparse p95/.test(box.textContent)).id = 'wide'")
    shade = "getComputedStyle(document.querySelector('#wide').parentElement, '::after').backgroundSize"
    hint = "getComputedStyle(document.querySelector('#wide').parentElement, '::before').content"
    assert chrome.run(f"[{edge}.contains('right'), {edge}.contains('left')]") == [True, False]
    assert "more columns" in chrome.run(hint) and not chrome.run(shade).startswith("0px")
    chrome.run("document.querySelector('#wide').scrollLeft = 1e6")
    chrome.run(settle)
    assert chrome.run(f"[{edge}.contains('right'), {edge}.contains('left')]") == [False, True]
    assert chrome.run(hint) == "none" and chrome.run(shade).startswith("0px")
    # The name of the row stays in sight.
    assert chrome.run("document.querySelector('#wide tbody th').getBoundingClientRect().left") >= 0


def test_tables_sort_both_ways_with_empty_cells_last(opened: Chrome) -> None:
    table = (
        "[...document.querySelectorAll('table')].find(t => t.closest('.table').textContent.startsWith('Clips, worst'))"
    )
    column = f"[...{table}.tBodies[0].rows].map(r => r.cells[3].textContent)"
    assert opened.run(column) == ["-5.00", "-1.00", "+1.00", "–"]
    opened.run(f"{table}.tHead.rows[0].cells[3].querySelector('button').focus()")
    opened.press("Enter", 13, "\r")
    assert opened.run(f"{table}.tHead.rows[0].cells[3].ariaSort") == "ascending"
    opened.press("Enter", 13, "\r")
    assert opened.run(column) == ["+1.00", "-1.00", "-5.00", "–"]
    assert opened.run(f"{table}.tHead.rows[0].cells[3].ariaSort") == "descending"
    opened.run(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
    assert opened.run(f"{table}.tBodies[0].rows[1].cells[0].textContent") == "fair"


def choose(opened: Chrome, cases: int, value: int) -> None:
    select = f"document.querySelectorAll('.cases select')[{cases}]"
    opened.run(f"{select}.value = '{value}', {select}.dispatchEvent(new Event('change'))")
    opened.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_player_steps_plays_and_marks_the_charts(opened: Chrome) -> None:
    choose(opened, 0, 1)
    player = "document.querySelectorAll('.player')[1]"
    read = f"{player}.querySelector('output').textContent"
    assert "Frame 3 of 4" in opened.run(read), "the first frame on which something was skipped"
    for _ in range(2):
        opened.run(f"{player}.querySelector('[aria-label=\"Previous frame\"]').click()")
    assert "Frame 1 of 4" in opened.run(read) and "whole frame: first frame" in opened.run(read)
    opened.run(f"{player}.querySelector('[aria-label=\"Next frame\"]').click()")
    opened.run(f"{player}.querySelector('input[type=range]').focus()")
    opened.press("ArrowRight", 39)
    assert "Frame 3 of 4" in opened.run(read)
    assert "2 of 4 windows" in opened.run(read) and "50% of memory keys" in opened.run(read)
    meters = f"[...{player}.querySelectorAll('meter')].map(m => m.value)"
    assert opened.run(meters) == [1, 1, 0.5, 0.5]
    key = opened.run(f"{player}.dataset.player")
    marks = f"[...document.querySelectorAll('[data-follow=\"{key}\"] .plot .cursor')]"
    cursors = f"{marks}.map(c => c.getAttribute('visibility'))"
    assert opened.run(cursors) == ["visible", "visible"]
    opened.run(f"{player}.querySelector('[aria-label=\"Previous frame\"]').click()")
    assert "Frame 2 of 4" in opened.run(read)
    opened.run(f"{player}.querySelector('[aria-label=Play]').click()")
    opened.run(
        f"new Promise(done => {{ const wait = () => /Frame 4/.test({read}) ? done() : setTimeout(wait, 20); wait(); }})"
    )
    opened.run(f"{player}.querySelector('[aria-label=Pause]').click()")
    assert opened.run(f"{player}.querySelector('[aria-label=Play]').textContent") == "Play"


def test_masks_and_windows_are_where_the_trace_says(opened: Chrome) -> None:
    player = "document.querySelectorAll('.player')[1]"

    def pixel(canvas: int, x: int, y: int) -> list[int]:
        at = f"{player}.querySelectorAll('canvas')[{canvas}].getContext('2d').getImageData({x}, {y}, 1, 1).data"
        return list(opened.run(f"[...{at}]"))

    assert pixel(0, 3, 1)[:3] == [255, 138, 76]  # row 1, columns 2 to 5
    assert pixel(0, 6, 1)[3] == 0
    explained = f"[...{player}.querySelectorAll('.legend li')].map(item => item.hidden)"
    assert opened.run(explained) == [False, False]
    windows, masks = (f"{player}.querySelectorAll('input[type=checkbox]')[{n}].click()" for n in (1, 0))
    opened.run(masks)
    assert pixel(0, 3, 1)[3] == 0
    dark = pixel(1, 6, 1)
    assert dark[3] > 100 and max(dark[:3]) < 120  # window 1 was not computed
    assert pixel(1, 2, 1)[3] < dark[3]
    opened.run(windows)
    assert pixel(1, 6, 1)[3] == 0
    assert opened.run(explained) == [True, True]


def test_a_case_can_be_chosen(opened: Chrome) -> None:
    groups = "[...document.querySelectorAll('.cases')].map(all => [...all.querySelectorAll(':scope > .case')])"
    shown = f"{groups}.map(parts => parts.map(part => !part.hidden))"
    assert opened.run(shown) == [[True, False], [True, False]]
    choose(opened, 1, 1)
    assert opened.run(shown) == [[True, False], [False, True]]
    assert opened.run(f"{groups}[1][1].querySelectorAll('.plot svg').length") == 1


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_is_readable_at_every_width(chrome: Chrome, page: Path, width: int, dark: bool) -> None:
    chrome.errors.clear()
    chrome.open(page, width, dark=dark)
    assert chrome.run("document.documentElement.scrollWidth") <= width
    light = chrome.run(
        "(() => { const f = c => c.match(/[0-9.]+/g).slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : "
        "((v + .055) / 1.055) ** 2.4; }).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0); const s = "
        "getComputedStyle(document.body); const q = getComputedStyle(document.querySelector('.note')); "
        "return [f(s.backgroundColor), f(s.color), f(q.color)]; })()"
    )
    back, ink, soft = light
    assert (back < 0.05) is dark
    for colour in (ink, soft):
        high, low = max(back, colour), min(back, colour)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    unnamed = (
        "[...document.querySelectorAll('button, select, input')]"
        ".filter(e => !e.ariaLabel && !e.textContent.trim() && !e.labels?.length)"
    )
    assert chrome.run(f"{unnamed}.length") == 0
    assert chrome.errors == []


def test_embedded_frames_are_shown(chrome: Chrome, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((60, 80, 3), (0, 200, 0), np.uint8)).save(tmp_path / f"{number:05d}.png")
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(trace()))
    chrome.errors.clear()
    chrome.open(write_report([file], tmp_path / "report.html", frames=tmp_path))
    green = (
        "new Promise(done => { const wait = () => { const d = document.querySelector('.player canvas').getContext('2d')"
        ".getImageData(4, 4, 1, 1).data; d[1] > 150 ? done([...d]) : setTimeout(wait, 20); }; wait(); })"
    )
    assert chrome.run(green)[3] == 255
    assert chrome.errors == []


def test_nothing_plays_before_every_picture_is_decoded(chrome: Chrome, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((60, 80, 3), (0, 200, 0), np.uint8)).save(tmp_path / f"{number:05d}.png")
    file = tmp_path / "trace.json"
    data = trace()
    data["fps"] = 30
    file.write_text(json.dumps(data))
    report = write_report([file], tmp_path / "report.html", frames=tmp_path)
    slow = chrome.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.held = []; HTMLImageElement.prototype.decode = function () {"
        " return new Promise(done => held.push(() => { this.decoded = true; done(); })); };"
        "const draw = CanvasRenderingContext2D.prototype.drawImage; window.grey = 0;"
        "CanvasRenderingContext2D.prototype.drawImage = function (image, ...rest) {"
        " if (image instanceof HTMLImageElement && !image.decoded) grey++; return draw.call(this, image, ...rest); };",
    )
    try:
        chrome.errors.clear()
        chrome.open(report)
        controls = "[...document.querySelectorAll('.controls button, .controls input')].map(part => part.disabled)"
        said = "document.querySelector('.loading')?.textContent"
        assert set(chrome.run(controls)) == {True}
        assert chrome.run(said) == "Loading frames"
        turn = (
            "new Promise(done => { const next = () => held.length ? (held.shift()(), done()) : setTimeout(next, 5);"
            " next(); })"
        )
        for number in range(4):
            assert set(chrome.run(controls)) == {True}
            chrome.run(turn)
            chrome.run("new Promise(done => setTimeout(done))")
            assert chrome.run(said) == (f"Loading frames: {number + 1} of 4" if number < 3 else None)
        assert set(chrome.run(controls)) == {False}
        bare = (
            "window.bare = 0; { const pen = document.querySelector('.player canvas').getContext('2d'); const see ="
            " () => { if (pen.getImageData(4, 4, 1, 1).data[1] < 150) bare++; requestAnimationFrame(see); }; see(); }"
        )
        chrome.run(bare)
        chrome.run("document.querySelector('[aria-label=Play]').click()")
        chrome.run("new Promise(done => setTimeout(done, 400))")
        assert chrome.run("[grey, bare]") == [0, 0]
        assert chrome.errors == []
    finally:
        chrome.call("Page.removeScriptToEvaluateOnNewDocument", identifier=slow["identifier"])
