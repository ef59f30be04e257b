"""The page: one file, nothing loaded, every text escaped, for every kind of model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

import ridgeline
from ridgeline.analysis.explain import explain
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.report import write_report
from ridgeline.report.units import seconds

VOID = {"meta", "link", "img", "br", "hr", "input", "circle", "path"}
LOADING = {"src", "srcset", "href", "data", "action", "poster", "xlink:href"}


@dataclass
class Page(HTMLParser):
    """The page's elements, as a browser reads them; a tag that closes another than the open one fails."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    charts: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        attributes = self.elements[-1][1]
        if self.open[-1] == "script" and "data-chart" in attributes:
            self.charts[attributes["data-chart"]] = json.loads(data)
        else:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self):
        kept = {k: v for k, v in self.texts.items() if k not in ("script", "style")}
        return " ".join(" ".join(parts) for parts in kept.values())


def read(path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def page(decoder, cpu, tmp_path_factory, checked) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(path, decoder, cpu, checked(decoder), "def f():\n    return 1 < 2") == path
    return read(path)


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not LOADING & set(attributes)
    assert "@import" not in "".join(page.texts["style"])
    assert "url(" not in "".join(page.texts["style"])


def test_plotly_is_there_once_and_is_most_of_the_file(decoder, cpu, tmp_path, checked):
    text = write_report(tmp_path / "r.html", decoder, cpu, checked(decoder)).read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    assert len(text) < len(get_plotlyjs()) + 150_000


def test_the_sections_come_in_their_order(page):
    assert [h["id"] for h in page.all("h2")] == [
        "figures",
        "time",
        "errors",
        "sample",
        "roofline",
        "memory",
        "basis",
        "assumptions",
    ]
    assert len(page.all("h1")) == 1


def test_every_tab_has_its_panel(page):
    tabs = [b for b in page.all("button") if b.get("role") == "tab"]
    panels = {d["id"]: d for d in page.all("div") if d.get("role") == "tabpanel"}
    assert [panels[t["aria-controls"]]["aria-labelledby"] for t in tabs] == [t["id"] for t in tabs]
    assert len(panels) == len(tabs) == 4


def test_every_chart_has_its_place_and_says_what_it_shows(page):
    places = {d["id"]: d for d in page.all("div") if d.get("class") == "chart"}
    assert set(places) == set(page.charts)
    for place in places.values():
        assert place["role"] == "img"
        assert place["aria-label"]


def test_every_colour_of_the_charts_is_defined_for_light_and_dark(page):
    light, dark = "".join(page.texts["style"]).split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r"var\((--[\w-]+)\)", json.dumps(page.charts)))
    assert used
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_tables_have_captions_and_headers_of_rows_and_columns(page):
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}


def test_it_says_what_it_is(page, decoder, cpu):
    said = page.words()
    for part in (decoder.model, cpu.title, ridgeline.__version__, cpu.date, cpu.source):
        assert part in said
    assert "ridgeline explain smollm2-135m --on generic-cpu --prompt 512" in said
    for assumption in decoder.assumptions:
        assert assumption[1:] in said


def test_predicted_and_measured_stand_side_by_side(page, decoder):
    said = page.words()
    for phase in decoder.phases:
        assert f"{seconds(phase.seconds)} predicted, {seconds(1.25 * phase.seconds)} measured" in said
    assert said.count("error \N{MINUS SIGN}20 %") == 3  # prefill, decode, time to first token


def test_operators_without_a_place_on_the_chart_are_named(page):
    assert "No arithmetic, so no place on the chart: embedding, take_rows." in page.words()


def test_without_a_check_nothing_claims_to_be_measured(decoder, cpu, tmp_path):
    page = read(write_report(tmp_path / "r.html", decoder, cpu))
    assert "measured" not in page.words().replace("ridgeline measure", "")
    assert "ridgeline check" not in page.words()
    assert {h["id"] for h in page.all("h2")}.isdisjoint({"errors", "sample"})


def test_a_measured_machine_says_so(measured_cpu, checked, tmp_path):
    found = explain("smollm2-135m", measured_cpu, prompt=512, output=128)
    page = read(write_report(tmp_path / "r.html", found, measured_cpu, checked(found)))
    said = page.words()
    assert "ridgeline explain smollm2-135m --on this" in said
    assert "ridgeline check smollm2-135m --weights random --prompt 512 --context 513" in said
    assert "the count, and measured figures of the machine" in said
    bars = page.charts["time-decode"]["data"]
    assert bars[-1]["text"][0].startswith("between operators")
    names = page.charts["errors-1"]["layout"]["yaxis"]["ticktext"]
    assert "split_heads" in names  # a view moves nothing, but its call takes time


def test_an_encoder_has_no_decode_and_no_cache(encoder, cpu, tmp_path, checked):
    page = read(write_report(tmp_path / "r.html", encoder, cpu, checked(encoder)))
    said = page.words()
    assert "Encode" in said
    assert "TPOT" not in said
    assert "decode" not in said.lower()
    assert "--output" not in said


def test_a_request_of_one_token_has_no_time_per_output_token(cpu, tmp_path):
    one = explain("smollm2-135m", cpu, prompt=64, output=1)
    said = read(write_report(tmp_path / "r.html", one, cpu)).words()
    assert "TTFT" in said
    assert "TPOT" not in said


def test_a_model_that_does_not_fit_is_said_not_to(tmp_path):
    device = load_device("rtx-4060")
    big = explain("llama-3-405b", device, prompt=512, weights="int4-g128")
    said = read(write_report(tmp_path / "r.html", big, device)).words()
    assert "does not fit" in said
    assert "--weights int4-g128" in said


def test_text_from_outside_is_escaped(decoder, cpu, tmp_path, checked):
    evil = "</script><script>alert('x')</script>"
    renamed = replace(decoder, model=evil, assumptions=(evil,))
    device = replace(cpu, title=evil, source=evil)
    plain = read(write_report(tmp_path / "plain.html", decoder, cpu, sample="x"))
    page = read(write_report(tmp_path / "evil.html", renamed, device, checked(renamed), sample=evil))
    scripts = len(page.all("script")) - len(page.charts)
    assert scripts == len(plain.all("script")) - len(plain.charts)
    assert "<script>alert('x')" in page.words()


def test_operator_names_are_escaped_in_charts(decoder, cpu, tmp_path, checked):
    phases = tuple(
        replace(p, kernels=tuple(replace(k, op="<b>&" + k.op) for k in p.kernels)) for p in decoder.phases
    )
    renamed = replace(decoder, phases=phases)
    page = read(write_report(tmp_path / "r.html", renamed, cpu, checked(renamed)))
    hovers = [t["hovertext"] for t in page.charts["roofline-chart"]["data"] if "hovertext" in t]
    assert hovers
    assert all("&lt;b&gt;&amp;" in text for texts in hovers for text in texts)


def test_another_device_than_the_explanations_is_refused(decoder, tmp_path):
    with pytest.raises(InputError, match="generic-cpu: pass that device, not h100-sxm"):
        write_report(tmp_path / "r.html", decoder, load_device("h100-sxm"))


def test_a_path_that_cannot_be_written_is_one_clear_line(decoder, cpu, tmp_path):
    with pytest.raises(InputError, match=r"cannot write the report to .*No such file"):
        write_report(tmp_path / "nowhere" / "r.html", decoder, cpu)
