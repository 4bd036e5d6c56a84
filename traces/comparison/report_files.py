"""Writes the files of a report: the numbers, the page, and each chart as a picture."""

from pathlib import Path

from pagedkv.traces.comparison.charts import charts_of
from pagedkv.traces.comparison.drawing import draw_png
from pagedkv.traces.comparison.page import page
from pagedkv.traces.comparison.report import Report
from pagedkv.traces.comparison.report_folder import PAGE, REPORT


def write_report(report: Report, folder: Path) -> None:
    """Write all files into an empty folder.

    Raises:
        OSError: One of them cannot be written.
    """
    pictures = {
        f"{chart.slug}.png": chart
        for part in report.by_lower_tiers()
        if part.measured
        for chart in charts_of(part)
    }
    for name, chart in pictures.items():
        draw_png(chart, folder / name)
    (folder / PAGE).write_text(page(report), encoding="utf-8")
    complete = report.model_copy(update={"files": [REPORT, PAGE, *pictures]})
    (folder / REPORT).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
