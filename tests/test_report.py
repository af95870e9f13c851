"""The page shows every finding, stands alone, and can be read by everyone."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import verify.report
from verify.finding import INTERRUPTED, SCHEMA, Cell, Finding, Report
from verify.report import write_html
from verify.report.document import UnreadableReport, read_report, write_json
from verify.report.mathml import mathml
from verify.report.page import render
from verify.report.plot import bent_axis, error_plot, linear_axis, ulp_axis

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.13.0", "sympy": "1.14.0", "flint": "0.9.0", "device": "cpu", "cpu": "x (AVX512)",
    "seed": 0, "profile": "quick", "jobs": 2, "seconds": 1.5,
}  # fmt: skip


def _page() -> dict[str, Any]:
    z = [-1e30, -3.0, -1e-40, 0.0, 1e-40, 3.0, 1e30]
    return {
        "energy_latex": r"\log\left(1 + \frac{u^{2}}{\nu \sigma^{2}}\right)",
        "energy_text": "log(1 + u**2)",
        "source": "Student (1908)",
        "notes": "a <note> & more",
        "seed": "log(1 + z²)",
        "parameters": [{"name": "nu", "domain": "(0, ∞)", "default": 1.0, "doc": "degrees of freedom"}],
        "facts": [{"statement_latex": r"Z = \pi", "source": "DLMF 4.26.1", "verdict": "proved"}],
        "derivation": [
            {
                "id": f"step.{verdict}", "title": f"a step that is {verdict}", "statement_latex": r"a = \tanh T",
                "assumptions": "z real", "rule": "by definition", "symbolic": "holds", "enclosure": "holds",
                "points": 120, "verdict": verdict,
            }
            for verdict in ("proved", "undecided")
        ],
        "activation": {"z": [-1.0, 0.0, 1.0], "curves": {"m = 1": [-0.5, 0.0, 0.5], "m = 2": [-0.7, 0.0, None]}},
        "errors": {
            "float32": {"z": z, "ulp": [0.5] * 6 + [9.0], "budget": [2.0] * 5 + [None, 2.0]},
            "float64": {"z": z, "ulp": [0.0] * 7, "budget": [math.inf] * 7},
        },
    }  # fmt: skip


@pytest.fixture
def report() -> Report:
    def cell(index: int, kernel: str = "student_t") -> Cell:
        return Cell("posterior_mean.accuracy", kernel, f"function_{index}", "float32")

    worst = {"z": "0x1.8p+1", "m": "0x1p+0"}
    findings = [
        Finding(cell(0), "passed", "sampled", 4096, 1.4, 3.8, 1.5, "ulp", worst, None, "implicit-em verify a --seed 0"),
        Finding(cell(1), "failed", "sampled", 4096, 9e9, 3.8, 9e9, "ulp", worst, "beyond <it>", "implicit-em verify b"),
        Finding(cell(2), "undecided", None, 0, reason="the enclosure stays wide", reproduce="implicit-em verify c"),
        Finding(cell(3), "not_run", None, 0, reason="device cuda: not here", reproduce="implicit-em verify d"),
        Finding(
            cell(4), "expected_failure", "sampled", 3, reason="the integral diverges", reproduce="implicit-em verify e"
        ),
        Finding(cell(5), "failed", "sampled", 10, math.inf, 3.8, math.inf, "ulp", worst, "NaN", "implicit-em verify f"),
        Finding(
            cell(6), "failed", "sampled", 1, math.nan, math.inf, math.inf, "ulp", worst, "NaN", "implicit-em verify i"
        ),
        Finding(cell(0, "huber"), "passed", "proved", 120, reproduce="implicit-em verify g"),
        Finding(
            cell(1, "huber"),
            "passed",
            "exhaustive",
            4294967296,
            0.0,
            0.0,
            0.0,
            "ulp",
            worst,
            None,
            "implicit-em verify h",
        ),
    ]
    pages = {"student_t": _page(), "huber": {"crashed": "crashed: RuntimeError: no page"}}
    return Report(ENVIRONMENT, len(findings), findings, pages)


class _Elements(HTMLParser):
    """Every element with its attributes, and whether each one that was opened was closed."""

    VOID = ("meta", "br", "link", "img", "hr", "path", "i")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


def test_the_page_needs_nothing_but_itself(report: Report) -> None:
    page = render(report)
    elements = _Elements(page)
    for attributes in (attributes for _, attributes in elements.found):
        for name in ("src", "href", "xlink:href", "action", "poster", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not elements.of("script", "link", "iframe", "img", "object", "embed")
    assert all(url.startswith('"data:') for url in re.findall(r"url\(([^)]*)", page))
    assert "@import" not in page
    assert "http" not in page


def test_the_page_is_well_formed_and_its_ids_are_unique(report: Report) -> None:
    elements = _Elements(render(report))
    assert elements.open == []
    ids = Counter(attributes["id"] for _, attributes in elements.found if "id" in attributes)
    assert set(ids.values()) == {1}
    targets = {(attributes.get("href") or "")[1:] for attributes in elements.of("a")}
    assert targets <= set(ids)


def test_every_finding_is_on_the_page(report: Report) -> None:
    page = render(report)
    for finding in report.findings:
        assert f"{finding.cell.function}, float32" in page
        assert finding.reproduce.split(" --")[0] in page
        assert escape(finding.reason or "") in page
    assert "0x1.8p+1 (3)" in page
    assert "4,294,967,296 cases" in page


def test_the_verdict_comes_first_and_failures_before_the_rest(report: Report) -> None:
    page = render(report)
    assert "<title>implicit-em: 3 failed and 1 undecided of 9 cells</title>" in page
    order = [page.index(mark) for mark in ("<h1", 'id="attention"', 'id="overview"', 'id="student_t"', 'id="huber"')]
    assert order == sorted(order)


def test_an_interrupted_run_is_no_success(report: Report) -> None:
    held = [finding for finding in report.findings if finding.status == "passed"]
    left = replace(held[0], status="not_run", basis=None, reason=INTERRUPTED)
    page = render(Report(report.environment, 2, [held[0], left]))
    assert '<h1 class="not_run">' in page
    assert "(not run)</span></a></li>" in " ".join(page.split()), "the kernel in the contents"


def test_the_parts_of_a_kernel_are_shown_and_text_is_escaped(report: Report) -> None:
    page = render(report)
    for text in ("Student (1908)", "log(1 + z²)", "a &lt;note&gt; &amp; more", "degrees of freedom", "DLMF 4.26.1"):
        assert text in page
    assert "2 of 3 steps proved, with the facts above" in page
    assert "no page" in page
    assert "<note>" not in page


def test_the_page_can_be_read_by_everyone(report: Report) -> None:
    elements = _Elements(render(report))
    assert elements.of("html")[0]["lang"] == "en"
    assert elements.of("main")
    assert elements.of("nav")[0]["aria-label"]
    assert len(elements.of("caption")) == len(elements.of("table"))
    assert all(attributes.get("scope") for attributes in elements.of("th"))
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in elements.of("svg"))
    assert all(attributes.get("alttext") for attributes in elements.of("math"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(theme: str) -> None:
    style = (Path(verify.report.__file__).parent / "style.css").read_text(encoding="utf-8")
    block = style.split(":root {")[1 if theme == "light" else 2].split("}")[0]
    colour = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))
    for text in ("ink", "quiet", "link", "pass", "fail", "warn", "skip"):
        for background in ("paper", "card", "wash"):
            assert _contrast(colour[text], colour[background]) >= 4.5, (text, background)
    for line in ("c0", "c1", "c2", "c3", "c4", "dots", "budget"):
        assert _contrast(colour[line], colour["paper"]) >= 3, line


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, as WCAG 2.2 defines it."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_json_goes_round_and_keeps_the_contract(report: Report, tmp_path: Path) -> None:
    path = write_json(report.as_dict(), tmp_path / "sub" / "report.json")
    text = path.read_text(encoding="utf-8")
    assert "Infinity" not in text
    assert "NaN," not in text  # as a value; a reason may name it
    again = read_report(path)
    assert again.summary == report.summary
    assert [f.cell for f in again.findings] == [f.cell for f in report.findings]
    assert again.findings[0] == report.findings[0]
    assert again.findings[5].measured is None  # JSON has no word for infinity
    document = report.as_dict()
    assert set(document) == {"schema", "environment", "summary", "findings", "kernels"}
    assert document["schema"] == SCHEMA
    wanted = {
        "check", "kernel", "function", "dtype", "device", "backend", "status", "basis", "cases", "measured", "budget",
        "unit", "worst", "reason", "reproduce",
    }  # fmt: skip
    assert all(wanted <= set(row) for row in document["findings"])
    assert all(float.fromhex(text) is not None for f in report.findings for text in (f.worst or {}).values())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "environment": {}, "summary": 3}'],
)
def test_what_is_no_report_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UnreadableReport, match=r"report\.json: expected") as error:
        read_report(tmp_path / "report.json")
    assert "\n" not in str(error.value)


def test_a_rendered_report_is_the_one_that_was_stored(report: Report, tmp_path: Path) -> None:
    write_json(report.as_dict(), tmp_path / "report.json")
    path = write_html(read_report(tmp_path / "report.json"), tmp_path / "index.html")
    assert path.read_text(encoding="utf-8") == render(read_report(tmp_path / "report.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "report.json"]


def test_a_formula_becomes_mathml_or_stays_readable() -> None:
    assert mathml(r"\frac{a}{b}").startswith("<math alttext=")
    assert "http" not in mathml(r"\frac{a}{b}")
    assert mathml(r"\left( a") == r"<code>\left( a</code>"
    assert "&lt;" in mathml(r"a < b")


def test_an_error_plot_drops_no_point() -> None:
    z = [0.0, 1.0, 2.0]
    clean = error_plot("k", "float32", {"z": z, "ulp": [0.0, 1.0, 1.5], "budget": [2.0, 2.0, 2.0]})
    assert "at 3 inputs: at most 1.5 ulp; 0 are beyond their budget, 0 undecided" in clean
    assert "beyond" not in re.findall(r'class="(\w+)"', clean)
    for nothing in (None, math.inf, math.nan):
        beyond = error_plot("k", "float32", {"z": z, "ulp": [0.0, nothing, 1.0], "budget": [2.0, 2.0, 2.0]})
        assert "at most ∞ ulp; 1 are beyond their budget, 0 undecided" in beyond
        open_ones = error_plot("k", "float32", {"z": z, "ulp": [0.0, 1.0, 1.0], "budget": [2.0, 2.0, nothing]})
        assert "0 are beyond their budget, 1 undecided" in open_ones
        assert 'class="open"' in open_ones
        assert not re.search(r'd="[^"]*(nan|inf)', beyond + open_ones)
    assert error_plot("k", "float32", {"z": [], "ulp": [], "budget": []})


def test_a_report_of_few_words_is_rendered(report: Report) -> None:
    short = Report({"profile": "quick", "seed": 0}, report.planned, report.findings)
    assert "quick profile · seed 0</p>" in render(short)


def test_an_operator_is_set_upright() -> None:
    assert "<mtext>log1p_square</mtext>" in mathml(r"\operatorname{log1p\_square}\left(x\right)")
    assert "<mtext>sech²</mtext>" in mathml(r"\operatorname{sech^{2}}\left(x\right)")


@pytest.mark.parametrize(
    "axis",
    [
        linear_axis(-1, 1), linear_axis(0, 0), linear_axis(-3e-5, 8e-5), bent_axis([0.0]), bent_axis([-1.0, 0.0, 1.0]),
        bent_axis([-1e38, -1e-45, 0.0, 1e-45, 1.0, 1e38]),
        bent_axis([1e-8, 1.0, 1e12]), ulp_axis(1), ulp_axis(40), ulp_axis(1e12),
    ],
)  # fmt: skip
def test_an_axis_keeps_its_ticks_inside_and_apart(axis: Any) -> None:
    places = [axis.place(value, 0.0, 100.0) for value, _ in axis.ticks]
    assert 2 <= len(places) <= 12
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)
    assert all(abs(one - other) > 4 for i, one in enumerate(places) for other in places[:i])
