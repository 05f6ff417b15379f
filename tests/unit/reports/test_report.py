"""The scaling report must say what its rows say, keep measured and projected apart, and read well in a browser."""

import json
import re
import shutil
import subprocess
import warnings
from html import escape
from pathlib import Path
from typing import Any

import pytest
from made_results import LAW, results, scaling_row, throughput_row

from m3ae_scale.cli.main import main
from m3ae_scale.errors import InputError
from m3ae_scale.reports import report_loss
from m3ae_scale.reports.report import write_report
from m3ae_scale.reports.report_loss import law_rows
from m3ae_scale.reports.report_speed import efficiencies
from m3ae_scale.reports.scaling_law import fit_law

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of results of every kind, with few refits to save time."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_loss, "fit_law", lambda points: fit_law(points, resamples=20))
        write_report(results(), path)
    return path.read_text()


def section(page: str, title: str) -> str:
    """The HTML of one section."""
    (found,) = [part for part in re.split(r"(?=<section)", page) if re.search(rf"<h2>{title}", part)]
    return found


def test_every_kind_of_result_has_its_section(page: str) -> None:
    for title in ("Throughput and MFU", "Loss against", "The fitted law", "Strong and weak", "Peers", "Memory by"):
        section(page, title)
    assert "out of memory" in section(page, "Throughput and MFU")
    assert "dense PyTorch: 1.9k" in section(page, "Peers")


def test_what_was_measured_and_what_is_projected_stand_apart(page: str) -> None:
    kinds = dict(re.findall(r'<section class="(\w+)">\s*<h2>([^<:]+)', page))
    assert set(kinds) == {"measured", "fitted", "projected"}
    for part in re.split(r"(?=<section)", page)[1:]:
        projected = "Nothing here was measured" in part
        assert projected == ('class="projected"' in part)
        assert not (projected and re.search(r">\[\d+\]<", part)), "a projection has no machine it comes from"


def test_the_law_on_the_page_is_the_one_behind_the_rows(page: str) -> None:
    law = section(page, "The fitted law")
    for name, truth in (("a, of the", LAW.size_exponent), ("b, of the", LAW.data_exponent)):
        fitted, low, high = re.search(rf"{name}[^<]*</td><td>([\d.]+)</td><td>([\d.]+) to ([\d.]+)", law).groups()
        assert float(fitted) == pytest.approx(truth, rel=0.1)
        assert float(low) <= float(fitted) <= float(high)


def test_efficiency_is_speed_a_device() -> None:
    lines = {kind: [round(e, 3) for _, e, _ in line] for kind, _, line in efficiencies(results())}
    assert lines == {"strong": [1.0, 0.9, 0.81], "weak": [1.0, 0.97, 0.941]}


def test_a_law_is_fitted_to_one_training_a_cell() -> None:
    rows = law_rows([row for row in results() if row["bench"] == "scaling"])
    cells = [(row["cell"]["size"], row["samples"]) for row in rows]
    assert len(cells) == len(set(cells)) == 12
    assert {row["cell"]["global_batch"] for row in rows} == {256} and {row["devices"] for row in rows} == {1}


def test_too_few_trainings_are_shown_without_a_law(tmp_path: Path) -> None:
    write_report([scaling_row("tiny", 1000 * n) for n in (1, 2, 4)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "No law is fitted: 3 trainings of 1 model sizes" in text and "The fitted law" not in text


def test_of_a_cell_that_failed_and_was_run_again_the_figure_counts(tmp_path: Path) -> None:
    good = throughput_row("base", 1, samples_per_second=1234.5)
    bad = {**good, "status": "failed with exit code 1"}
    for rows in ([bad, good], [good, bad]):
        write_report(rows, tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert "1,234" in text and "failed" not in text


def test_nothing_to_show_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="found 1 rows, none of them of throughput"):
        write_report([{"bench": "decoders"}], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    for arguments, said in (([], "nothing to show"), ([str(tmp_path / "empty")], "found no .jsonl"),
                            ([str(tmp_path / "none.jsonl")], "cannot read results")):  # fmt: skip
        assert main(["report", *arguments]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert said in line


def test_the_verb_reads_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "results.jsonl").write_text(json.dumps(throughput_row("base", 1)) + '\n{"torn')
    (tmp_path / "a" / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["report", str(tmp_path / "a"), "--output", str(tmp_path / "out" / "report.html")]) == 0
    assert "Throughput and MFU" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_stands_alone(page: str) -> None:
    loads = re.findall(r'(?:src|href|action|srcset|poster)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert all((a or b).startswith("#") for a, b in loads)
    assert "<script" not in page and "<link" not in page
    assert "EPYC &lt;9654&gt;" in page and "&#39;a &amp; b.yaml&#39;" in page


def test_every_chart_names_its_axes(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) >= 10
    for svg in charts:
        assert re.search(r'aria-label="[^"]+"', svg)
        x, y = re.search(r'data-x="([^"]+)"', svg)[1], re.search(r'data-y="([^"]+)"', svg)[1]
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert x in texts and (y in texts or y == "name"), (x, y, texts)


# Runs inside an empty page of the real browser: lays the report out in a frame, and writes what it finds into the body.
PROBE = """
<body style="margin:0"><iframe id="frame" width="WIDTH" height="900" style="border:0" srcdoc="PAGE"></iframe><script>
onload = () => {
  const page = document.getElementById("frame").contentDocument, view = page.defaultView, root = page.documentElement;
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
                       return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(view.getComputedStyle(e).backgroundColor);
                        if (c.length == 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const poor = [], small = [];
  for (const e of page.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const style = view.getComputedStyle(e), svg = e.ownerSVGElement;
    const a = light(rgb(svg ? style.fill : style.color)), b = light(behind(e));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (contrast < 4.5) poor.push([e.textContent.slice(0, 40), contrast]);
    const size = parseFloat(style.fontSize) * scale;
    if (size < 9) small.push([e.textContent.slice(0, 40), size]);
  }
  const wide = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg")
      && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName + "." + e.className);
  const found = {width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth, wide, poor, small,
                 dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
                 loaded: view.performance.getEntriesByType("resource").map(r => r.name)};
  document.body.innerHTML = "<pre>" + JSON.stringify(found).replace(/</g, "&lt;") + "</pre>";
};
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    if CHROMIUM is None:
        reason = "NO BROWSER HERE, the report is not laid out: apt-get install chromium"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return CHROMIUM


def laid_out(browser: str, page: str, width: int, dark: bool, folder: Path) -> dict[str, Any]:
    """Return what the probe finds with the page in a frame of `width` pixels."""
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", escape(page)))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        *scheme,
    ]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", (folder / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    text = re.search(r"<pre>(\{.*\})</pre>", done.stdout, flags=re.DOTALL)
    assert text, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize(("width", "dark"), [(320, False), (320, True), (1280, False)])
def test_it_reads_well_in_a_browser(browser: str, page: str, width: int, dark: bool, tmp_path: Path) -> None:
    found = laid_out(browser, page, width, dark, tmp_path)
    assert found["width"] == width and found["dark"] == dark
    assert found["overflow"] <= 0 and found["wide"] == []
    assert found["loaded"] == []
    assert found["poor"] == [], "less contrast than 4.5 to 1"
    assert found["small"] == [], "type of less than 9 pixels"


def test_the_probe_finds_what_is_bad(browser: str, page: str, tmp_path: Path) -> None:
    bad = '<p style="color: #999; font-size: 7px; width: 500px">faint, small and wide</p></body>'
    found = laid_out(browser, page.replace("</body>", bad), 320, False, tmp_path)
    assert found["overflow"] > 0 and found["wide"] and found["poor"] and found["small"]


def test_it_prints(browser: str, page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    output = tmp_path / "report.pdf"
    subprocess.run(
        [*command, f"--print-to-pdf={output}", (tmp_path / "report.html").as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    pages = len(re.findall(rb"/Type\s*/Page\b", output.read_bytes()))
    assert output.read_bytes().startswith(b"%PDF") and 3 <= pages <= 12
