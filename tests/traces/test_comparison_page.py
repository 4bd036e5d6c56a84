"""The report as people see it: complete, self-contained, and readable on any screen."""

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.traces.comparison.charts import Chart, Line, charts_of
from pagedkv.traces.comparison.colours import DARK, LIGHT
from pagedkv.traces.comparison.drawing import LABEL_GAP, draw_png, draw_svg, shortened, spread
from pagedkv.traces.comparison.page import fewest_gaps, nbytes, page
from pagedkv.traces.comparison.report import (
    Bound,
    Conditions,
    Machine,
    Measured,
    Measurement,
    Report,
    Unmeasured,
    WorkloadFacts,
)
from pagedkv.traces.comparison.report_files import write_report
from pagedkv.traces.comparison.report_folder import check_replaceable_report
from pagedkv.traces.comparison.sizes import Sizes, every_combination
from pagedkv.traces.replay_report import CallTimes, ReplayReport

LONG_NAME = "some_company.inference.cache:a_manager_with_quite_a_long_name"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def measured(implementation: str, sizes: Sizes, pages_hit: int | None) -> Measured:
    """A run with plausible numbers; without hits, nothing is counted."""
    counted = pages_hit is not None
    ways = ("host_to_device", "device_to_host") if sizes.host_pages else ()
    copied: dict[str, int | None] = {way: 123 if counted else None for way in ways}
    replay = ReplayReport(
        requests=100,
        pages_referenced=1000,
        pages_hit=pages_hit,
        hits_by_tier=dict.fromkeys(("device", "host"), pages_hit),
        tokens_total=128_000,
        tokens_hit=pages_hit,
        evictions=pages_hit,
        refused=0,
        preemptions=0,
        pages_hit_again=0,
        tokens_generated=100,
        seconds=0.5,
        calls={name: CallTimes(100, 12.5, 1234.5) for name in ("claim", "alloc", "step")},
    )
    return Measured(
        implementation=implementation,
        sizes=sizes,
        measurement=Measurement(
            replay=replay, pages_copied=copied, bytes_copied=copied, memory_growth_bytes=10**8
        ),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    """Three implementations: one complete, one that counts nothing, one that fails."""
    every_size = every_combination([1000, 5000, 100_000], [0, 50_000], [0])
    runs: list[Measured | Unmeasured] = []
    for sizes in every_size:
        runs.append(measured("reference", sizes, sizes.device_pages // 200))
        runs.append(measured(LONG_NAME, sizes, None))
        runs.append(
            Unmeasured(
                outcome="failed" if sizes.host_pages else "skipped",
                implementation="<i>broken</i>",
                sizes=sizes,
                reason="x" * 200 + " <script>alert(1)</script>",
            )
        )
    return Report(
        finished="2026-01-01T00:00:00+00:00",
        implementations=["reference", LONG_NAME, "<i>broken</i>"],
        versions={"reference": "1.0"},
        machine=Machine(system="Linux", processor="<fast>", cores=2, memory_bytes=2**34),
        workload=WorkloadFacts(
            name="trace_<b>.jsonl",
            sha256="0" * 64,
            format="mooncake",
            block_size=512,
            requests=100,
            tokens=512_000,
            pages_referenced=1000,
            distinct_pages=400,
            infinite_cache_hits=600,
        ),
        conditions=Conditions(
            page_size=512, concurrency=1, decode=False, limit=None, kv_bytes_per_token=131_072
        ),
        bounds=[Bound(sizes=sizes, belady_hits=550) for sizes in every_size],
        runs=runs,
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    """The page of that report."""
    return page(report)


class Elements(HTMLParser):
    """All attributes of a page, and all text that is no style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing(html: str) -> None:
    elements = Elements(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(elements.tags)
    targets = [value for name, value in elements.attributes if name in ("src", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_names_and_errors_cannot_inject_anything(html: str) -> None:
    elements = Elements(html)
    assert "i" not in elements.tags
    assert "trace_<b>.jsonl" in elements.text
    assert "<script>alert(1)</script>" in elements.text


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_what_is_not_counted_is_said_and_not_drawn(report: Report, html: str) -> None:
    assert Elements(html).text.count("not counted") > 10
    for part in report.by_lower_tiers():
        for chart in charts_of(part):
            if chart.slug.startswith(("hit-rate", "evictions", "bytes-moved")):
                assert {line.series for line in chart.lines} <= {None, 0}


def test_a_chart_names_those_that_have_no_line_in_it(report: Report, tmp_path: Path) -> None:
    [part, _] = report.by_lower_tiers()
    by_slug = {chart.slug: chart for chart in charts_of(part)}
    assert by_slug["evictions"].not_counted == (LONG_NAME,)  # nor those that were skipped
    assert by_slug["throughput"].not_counted == ()
    assert f"not counted: {LONG_NAME}</p></figure>" in page(report).replace("\n", "")


def test_a_latency_chart_names_each_implementation_once(report: Report) -> None:
    for chart in charts_of(next(report.by_lower_tiers())):
        named = [line.label for line in chart.lines if line.label]
        assert len(set(named)) == len(named), chart.slug
        if chart.unit == "seconds":
            assert named == ["reference", LONG_NAME]
            assert len(chart.lines) == 4


@pytest.mark.parametrize(("charts", "columns"), [(8, 4), (9, 3), (10, 5), (11, 4), (1, 3)])
def test_charts_leave_few_gaps(charts: int, columns: int) -> None:
    assert fewest_gaps(charts, (4, 5, 3)) == columns


def test_every_reason_is_told_once_per_section(html: str) -> None:
    text = Elements(html).text
    assert text.count("alert(1)") == 2
    assert "Of 18 runs, 3 failed and 3 skipped" in text
    assert "broken</i> skipped (1,000 / 5,000 / 100,000 device pages)" in text


def test_charts_follow_the_colours_of_the_page(html: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    used = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", charts))
    assert used == {
        "none",
        *(f"var(--{name})" for name in ("muted", "grid", "series-0", "series-1")),
    }
    assert LIGHT.keys() == DARK.keys()


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_text_has_enough_contrast(colours: dict[str, str]) -> None:
    for name in colours.keys() - {"grid", "paper"}:
        low, high = sorted((luminance(colours[name]), luminance(colours["paper"])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_the_folder_holds_what_the_report_says(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    written = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert sorted(written.files) == sorted(path.name for path in tmp_path.iterdir())
    assert written.model_copy(update={"files": []}) == report
    assert {"hit-rate.png", "hit-rate-host-50000.png", "latency-alloc.png"} <= set(written.files)
    check_replaceable_report(tmp_path)


def test_the_same_chart_gives_the_same_picture(report: Report, tmp_path: Path) -> None:
    chart = charts_of(next(report.by_lower_tiers()))[0]
    assert draw_svg(chart) == draw_svg(chart)
    for name in ("one", "two"):
        draw_png(chart, tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**9), st.floats(0, 1e15)),
        min_size=1,
        max_size=4,
        unique_by=lambda point: point[0],
    ),
    st.text(max_size=30),
)
def test_any_line_can_be_drawn(points: list[tuple[int, float]], label: str) -> None:
    draw_svg(Chart("any", "Any", "bytes", (Line(label, 7, tuple(sorted(points))),)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10).map(sorted))
def test_labels_are_moved_apart_within_the_chart_and_keep_their_order(
    heights: list[float],
) -> None:
    placed = spread(heights)
    assert all(b - a >= LABEL_GAP - 1e-9 for a, b in pairwise(placed))
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9


def test_long_names_keep_their_beginning_and_end() -> None:
    assert shortened("reference p99") == "reference p99"
    assert shortened(LONG_NAME) == "some_co…ong_name"


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "not counted"), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (62_400_000, "62.4 MB")],
)
def test_bytes_are_written_with_a_prefix(number: int | None, text: str) -> None:
    assert nbytes(number) == text


FRAME = """<!DOCTYPE html>
<iframe srcdoc="{page}" width="{width}" height="{height}" style="border: 0"></iframe>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe");
  const root = frame.contentDocument.documentElement;
  const loaded = frame.contentWindow.performance.getEntriesByType("resource");
  document.documentElement.dataset.overflow = root.scrollWidth - root.clientWidth;
  const tables = [...frame.contentDocument.querySelectorAll(".scroll")];
  const cut = tables.map((table) => table.scrollWidth - table.clientWidth);
  document.documentElement.dataset.cut = Math.max(...cut);
  document.documentElement.dataset.window = frame.contentWindow.innerWidth;
  document.documentElement.dataset.loaded = loaded.length;
}});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900), (2200, 1200)])
def test_a_browser_shows_it_without_scrolling_sideways_or_loading_anything(
    html: str, tmp_path: Path, width: int, height: int
) -> None:
    # In a frame, since windows of a headless browser have a least width.
    frame = FRAME.format(page=escape(html), width=width, height=height)
    (tmp_path / "frame.html").write_text(frame)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dom = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", profile),
            *("--window-size=2400,1400", "--dump-dom", (tmp_path / "frame.html").as_uri()),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    shown = dict(re.findall(r' data-(\w+)="(\d+)"', dom[: dom.index("<head")]))
    assert shown == {"overflow": "0", "cut": "0", "window": str(width), "loaded": "0"}
