"""What a comparison says: statistics, tables, charts."""

import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from pointadapt.compare.arms import Arm
from pointadapt.compare.cost import Cost
from pointadapt.compare.grid import Grid
from pointadapt.compare.page import decades, write_compare_page
from pointadapt.compare.stats import paired
from pointadapt.compare.tables import Row, as_csv, as_latex, as_markdown, leaders, paired_csv, reached


def test_paired_differences_are_student_s():
    a, b = {0: 70.0, 1: 72.0, 2: 75.0}, {0: 69.0, 1: 70.0, 2: 72.0, 3: 1.0}
    found = paired(a, b)
    differences = np.array([1.0, 2.0, 3.0])
    assert found.seeds == 3 and found.mean == pytest.approx(2)
    assert found.half == pytest.approx(4.302653 * differences.std(ddof=1) / math.sqrt(3), rel=1e-6)
    assert not found.is_clear
    assert paired({0: 9.0, 1: 9.1}, {0: 1.0, 1: 1.0}).is_clear
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 3.0}, {0: 1.0}).half is None


def table_rows() -> list[Row]:
    """Arms whose scores over three seeds are clear, level with the best, and broken."""
    spent = Cost(
        {"total": 9, "trained": 3, "trained_without_head": 2}, 5_000_000, 0.25, 0.0625, 8_000_000, 4_000_000, 1
    )
    scores = {
        "best_#1 {50 %} & $x^2$": [0.70, 0.72, 0.74],
        "level": [0.73, 0.69, 0.72],
        "worse": [0.50, 0.52, 0.54],
        "broken": [0.99],
        "lost": [],
    }
    return [
        Row(Arm(name, "gem"), "my_list_1.txt", {s: {"miou": v} for s, v in enumerate(values)}, 3 - len(values), 1.0,
            spent, None)
        for name, values in scores.items()
    ]  # fmt: skip


def test_bold_is_all_that_is_not_clearly_worse_than_the_best(tmp_path):
    rows = table_rows()
    assert leaders(rows, "miou") == {rows[0].arm.name, "level"}
    assert leaders([replace(row, scores={0: {"miou": 0.5}}) for row in rows], "miou") == set()
    grid = Grid(tmp_path, [row.arm for row in rows], ["my_list_1.txt"], 3, {})
    alone = replace(rows[1], scores={0: {"miou": 0.1}}, diverged=0, missing=2)
    assert leaders([rows[0], alone], "miou") == {rows[0].arm.name}  # of one seed nothing is known
    assert reached(alone, "miou") == "10.0 (2 unfinished)"
    lines = as_markdown(grid, rows, "miou", "mIoU").splitlines()
    assert [("**" in line) for line in lines[2:7]] == [True, True, False, False, False]
    assert "99.0 (2 diverged)" in lines[5] and "| diverged |" in lines[6]
    assert "| 3 | 2 | 5.00 | 250 | 62 | 8 | 4 |" in lines[2]
    page = write_compare_page(tmp_path / "compare.html", grid, rows, {"miou": "mIoU"}, "", []).read_text()
    assert page.count("class=best") == 2 and "one in twenty of the 10 pairs" in page
    csv_rows = list(csv.DictReader(as_csv(rows, ["miou"]).splitlines()))
    assert [row["diverged"] for row in csv_rows] == ["0", "0", "0", "2", "3"] and csv_rows[4]["miou_mean"] == ""
    pairs = {(row["method"], row["other"]): row for row in csv.DictReader(paired_csv(rows, ["miou"]).splitlines())}
    found = pairs["level", "worse"]
    assert (found["seeds"], found["clear"]) == ("3", "1") and float(found["difference"]) == pytest.approx(19.33)


def test_latex_has_no_character_that_breaks_it(tmp_path):
    rows = table_rows()
    text = as_latex(Grid(tmp_path, [row.arm for row in rows], ["my_list_1.txt"], 3, {}), rows, "miou", "mIoU")
    assert r"\textbf{72.0 $\pm$ 2.0}" in text and r"\textbf{best" not in text
    assert r"best\_\#1 \{50 \%\} \& \$x\textasciicircum{}2\$" in text
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 6 and {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {8}
    shares = as_latex(Grid(tmp_path, [rows[0].arm], ["my_list_1.txt", "5%"], 3, {}), rows[:1], "miou", "mIoU")
    assert r"mIoU, my\_list\_1.txt" in shares and not re.search(r"(?<!\\)[_#%]", shares)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (900, 2e6, [1e3, 1e4, 1e5, 1e6]),
        (9e3, 3e5, [1e4, 2e4, 5e4, 1e5, 2e5]),
        (126, 195, [150, 175]),
        (129, 136, [130, 132.5, 135]),
        (272, 546, [300, 400, 500]),
    ],
)
def test_a_chart_has_ticks_however_close_its_costs_are(low, high, expected):
    assert decades(math.log10(low), math.log10(high)) == pytest.approx(expected)
