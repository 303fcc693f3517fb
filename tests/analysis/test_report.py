"""The report page: its figures are the results', its data are the scans', nothing is fetched from outside."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from pointadapt.analysis.charts import bars, lines, matrix, smooth, ticks
from pointadapt.analysis.report import Result, read_metrics, write_report
from pointadapt.analysis.scene import NONE, scene_html, thin
from pointadapt.errors import UserError

CLASSES = ["floor", "wall", "a < b & c"]
CONFUSION = [[90, 10, 0], [5, 45, 0], [1, 1, 8]]


def evaluation(shift=0.0):
    return dict(miou=0.5 + shift, macc=0.6, allacc=0.7, iou=[0.8, 0.3, None], classes=CLASSES, confusion=CONFUSION)


def training(trained=1000):
    parameters = dict(total=100_000, trained=trained, trained_without_head=trained - 300)
    return dict(seconds=75.0, peak_memory=3 * 2**30, parameters=parameters)


def cloud(number=500, seed=0):
    rng = np.random.default_rng(seed)
    segment = rng.integers(-1, 3, number)
    return dict(
        coord=rng.uniform(-3, 5, (number, 3)) + [7e5, 6e6, 0],
        color=rng.integers(0, 256, (number, 3)),
        segment=segment,
        predicted=np.where(rng.random(number) < 0.8, np.maximum(segment, 0), 1),
        classes=CLASSES,
        name="hall",
    )


def data_of(page):
    """The JSON of the first scene in a page."""
    return json.loads(re.search(r'class="scene-data">(.*?)</script>', page, re.S)[1])


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


class Checker(HTMLParser):
    """Balanced tags; no resource that a browser would fetch."""

    void = {"meta", "link", "input", "br", "line", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value:
                assert value.startswith("data:"), (tag, value)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert "http" not in re.sub(r"https?://www.w3.org\S*", "", page)
    return checker


@pytest.fixture
def page(tmp_path):
    results = []
    for name, shift in (("linear probe", 0.0), ("GEM", 0.1), ("GEM", 0.2)):
        result = Result.of(name, evaluation(shift), training(2000 if name == "GEM" else 1000))
        result.history = [dict(step=s, loss=3 / s, lr=1e-3) for s in range(1, 30)] + [dict(step=30, miou=0.5 + shift)]
        results.append(result)
    file = write_report(tmp_path / "report.html", "A <title>", results, [cloud()], lead="lead", notes=["note"])
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
    return file.read_text()


def test_page_is_self_contained(page):
    checker = check(page)
    assert checker.tags.count("h2") == 5 and "canvas" in checker.tags
    assert "<title>A &lt;title&gt;</title>" in page and "a &lt; b &amp; c" in page


def test_table_has_means_and_spread(page):
    rows = [re.sub("<[^>]*>", "|", row) for row in re.findall("<tr>.*?</tr>", page.replace("\n", ""))]
    probe, gem = (re.split(r"\|+", row) for row in rows[1:])
    assert "50.0" in probe and "65.0 " in gem and "± 7.1" in gem and "(2 runs)" in gem
    assert "1,000" in probe and "700" in probe and "1.00" in probe and "75 s" in probe and "3.0 GiB" in probe
    best = re.findall(r"<td class=best>([\d.]+)", page)
    assert "65.0" in best and "50.0" not in best


def test_unknown_columns_are_left_out(tmp_path):
    page = write_report(tmp_path / "r.html", "t", [Result("one", miou=0.25)]).read_text()
    check(page)
    assert "25.0" in page and "mAcc" not in page and "peak" not in page
    assert "<script" not in page and "Training" not in page
    check(write_report(tmp_path / "none.html", "t", []).read_text())


def test_scene_data_are_the_scan():
    scan = cloud()
    fragment = scene_html(**scan)
    check(fragment)
    data = data_of(fragment)
    place = numbers(data["place"], "<u2").reshape(-1, 3) / 65535 * data["span"] + data["low"]
    np.testing.assert_allclose(place, scan["coord"], atol=8 / 65535)
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert list(layers) == ["colour", "ground truth", "prediction", "errors"]
    assert np.array_equal(numbers(layers["colour"]["color"], "u1").reshape(-1, 3), scan["color"])
    truth = numbers(layers["ground truth"]["label"], "u1")
    assert np.array_equal(np.where(truth == NONE, -1, truth.astype(int)), scan["segment"])
    assert np.array_equal(numbers(layers["errors"]["label"], "u1"), scan["predicted"])


def test_scene_of_several_predictions_shows_the_last():
    scan = cloud()
    scan["predicted"] = {"probe": scan["predicted"], "GEM": scan["segment"]}
    shown = [layer["name"] for layer in data_of(scene_html(**scan))["layers"] if layer["shown"]]
    assert shown == ["colour", "ground truth", "GEM", "errors of GEM"]


def test_scene_without_labels_or_points():
    data = data_of(scene_html(cloud()["coord"]))
    assert [layer["name"] for layer in data["layers"]] == ["height"]
    assert data_of(scene_html(cloud()["coord"], np.zeros((500, 3)))) == data, "no colour and all black are the same"
    data = data_of(scene_html(np.zeros((0, 3))))
    assert data["place"] == ""


def test_scene_cannot_break_out_of_its_script():
    scan = cloud(5) | {"name": "</script><b>", "predicted": {"</script>": np.zeros(5, int)}}
    fragment = scene_html(**scan)
    check(fragment)
    assert fragment.count("</script>") == 1


@pytest.mark.parametrize("limit", [100, 5000])
def test_thinning_keeps_the_shape(limit):
    rng = np.random.default_rng(1)
    coord = np.concatenate([rng.uniform(0, 1, (60_000, 3)), rng.uniform(9, 10, (1000, 3))])
    rows = thin(coord, limit)
    assert limit / 4 < len(rows) <= limit
    assert len(np.unique(rows)) == len(rows)
    assert np.ptp(coord[rows], axis=0).min() > 9, "the sparse corner is still there"
    assert np.array_equal(thin(coord[:50], limit), np.arange(50))
    assert len(thin(np.zeros((1000, 3)), limit)) <= limit


def test_result_from_run_folder(tmp_path):
    run = tmp_path / "run"
    (run / "adapter" / "best").mkdir(parents=True)
    (run / "adapter" / "best" / "adapter_model.safetensors").write_bytes(bytes(2048))
    (run / "run.json").write_text(
        json.dumps({"run": {"method": "gem"}, "dataset": {"classes": dict(zip("123", CLASSES, strict=True))}})
    )
    rows = [dict(step=1, loss=2.0, lr=0.1), {k: v for k, v in evaluation().items() if k != "classes"} | dict(step=5)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 6, "lo')
    (run / "result.json").write_text(json.dumps(training()))
    result = Result.from_run(run)
    assert (result.name, result.miou, result.adapter_size, result.seconds) == ("gem", 0.5, 2048, 75.0)
    assert result.per_class == dict(zip(CLASSES, [0.8, 0.3, None], strict=True))
    assert len(result.history) == len(read_metrics(run / "metrics.jsonl")) == 2
    (run / "evaluation.json").write_text(json.dumps(evaluation(0.1)))
    assert Result.from_run(run, name="mine").miou == pytest.approx(0.6)
    check(write_report(run / "report.html", "gem", [result]).read_text())


def test_folder_without_scores(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        Result.from_run(tmp_path)


def test_charts_are_well_formed_and_true():
    svg = bars(["x", "y"], {"m": [50.0, None], "n<": [100.0, 0.0]}, "t")
    widths = [float(r.get("width")) for r in ElementTree.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0]) and widths[2] < 1
    svg = matrix(CONFUSION, CLASSES, "t")
    cells = list(ElementTree.fromstring(svg).iter("rect"))
    assert len(cells) == 9 and "90.0 %" in cells[0].find("title").text and "10 points" in cells[1].find("title").text
    svg = lines([("m", 0, [(0, 1.0), (10, 3.0), (20, float("nan"))])], "t", dots=True)
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in ElementTree.fromstring(svg).iter("circle")]
    assert len(dots) == 2 and dots[1][0] > dots[0][0] and dots[1][1] < dots[0][1]
    assert lines([("m", 0, [])], "t") == ""
    narrow = ElementTree.fromstring(matrix([[0, 0], [0, 0]], ["a", "b"], "a class without points"))
    caption = [text for text in narrow.iter() if (text.text or "").startswith("rows: ground truth")]
    assert float(narrow.get("viewBox").split()[2]) - float(caption[0].get("x")) >= 240  # not cut off
    assert ">125<" not in lines([("m", 0, [(0, 100.0), (5, 100.0)])], "t", " %")


@pytest.mark.parametrize("low, high", [(0, 1), (0, 300), (0.31, 0.32), (5, 5), (0, 0), (-3, 7)])
def test_ticks_cover_the_range(low, high):
    found = ticks(low, high, 5)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 9
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_smooth_keeps_length_and_mean():
    curve = [(float(x), float(x % 2)) for x in range(40)]
    smoothed = smooth(curve, 9)
    assert len(smoothed) == 40 and np.std([y for _, y in smoothed]) < 0.1
    assert smooth(curve, 1) == curve
