"""The page: it asks nobody, holds together, and its figures are those of scikit-learn."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from serve.bundle import Bundle
from serve.fusion.fitting.options import FusionOptions
from tests.training.report.parsed import Element, parse, table
from tests.training.report.stored import label_outputs, stored_bundle, written_metrics
from training.evaluation.evaluation import Labelled, label_report
from training.evaluation.scores import EvaluationReport
from training.evaluation.validation_answers import ValidationAnswers
from training.report.write import ReportError, draw_page, write_report

ROWS, LABELS = 300, 40
NAMES = [f'the label <{number}> & its "long" name' for number in range(LABELS)]
PLAIN = FusionOptions(method="average", temperature=False)
CURVES = [
    {"title": "intents/a", "training": [[10, 2.0], [20, 1.0]], "held_out": [[20, 1.5]]},
    {"title": "intents/b", "training": [[10, 2.1], [20, 1.2]], "held_out": []},
    {"title": "base 1/pretraining", "training": [[5, 4.0], [50, 3.0]], "held_out": []},
]
DATA = {
    "counts": [{"split": "train", "step": "collect", "before": 40, "after": 38, "note": "<b>"}],
    "notes": [],
    "overlaps": [],
}

RECORDED = {"curves": CURVES, "data": DATA, "command": "choir train recipe.yaml --out bundle"}


def made(folder: Path, **facts: Any) -> tuple[Bundle, ValidationAnswers, Element]:
    """A bundle with its report, and the page's elements."""
    outputs, truth = label_outputs(3, ROWS, LABELS, skill=2.5)
    bundle = stored_bundle(folder, outputs, truth, labels=NAMES, options=PLAIN)
    write_report(bundle, "tiny", [evaluated(bundle)], {**RECORDED, **facts})
    answers = ValidationAnswers.read(bundle, bundle.ensemble("intents"))
    assert answers is not None
    return bundle, answers, drawn(bundle)


def evaluated(bundle: Bundle) -> EvaluationReport:
    ensemble = bundle.ensemble("intents")
    answers = ValidationAnswers.read(bundle, ensemble)
    assert answers is not None
    rows = Labelled([""] * ROWS, [""] * ROWS, "validation")
    fused = {"average": answers.served}
    return label_report(ensemble, rows, answers.outputs, answers.truth, fused)


def drawn(bundle: Bundle) -> Element:
    page = (bundle.path / "report" / "index.html").read_text()
    assert not re.search(r"\b(nan|NaN|inf|None|Undefined)\b", page)
    return parse(page)


def figure(page: Element, title: str) -> Element:
    [found] = [each for each in page.all("figure") if each.all("strong")[0].text == title]
    return found


def points(chart: Element, line: str) -> list[tuple[float, float]]:
    """A line's points in the axes' units, which are read off the ticks as a person does."""
    ticks = [
        (float(each.attributes["x"]), float(each.attributes["y"]), float(each.text))
        for each in chart.all("text", class_="tick")
    ]
    bottom = max(y for _, y, _ in ticks)
    across = [(x, value) for x, y, value in ticks if y == bottom][
        :-1
    ]  # the last stands beside its line
    up = [(y - 3.5, value) for _, y, value in ticks if y < bottom]
    (x0, a0), (x1, a1) = across[0], across[-1]
    (y0, b0), (y1, b1) = up[0], up[-1]
    [found] = [each for each in chart.all("polyline") if each.text == line]
    return [
        (a0 + (float(x) - x0) * (a1 - a0) / (x1 - x0), b0 + (float(y) - y0) * (b1 - b0) / (y1 - y0))
        for x, y in (pair.split(",") for pair in found.attributes["points"].split())
    ]


def test_the_page_asks_no_host_for_anything(tmp_path: Path) -> None:
    bundle, _, page = made(tmp_path)
    text = (bundle.path / "report" / "index.html").read_text()
    for element in page.all("a"):
        assert element.attributes["href"].startswith("#")
    for tag in ("script", "link", "img", "iframe", "object", "image", "use"):
        assert page.all(tag) == []
    assert not re.search(r"https?://|url\(|@import|src=|\son[a-z]+=", text)


def test_words_of_the_data_are_text_and_not_elements(tmp_path: Path) -> None:
    _, _, page = made(tmp_path)
    assert NAMES[0][:13] not in {element.tag for element in page.all("label")}
    assert any("<b>" in row for row in table(page.all("section", id="data")[0].all("table")[0]))


def test_the_reliability_diagram_is_scikit_learns(tmp_path: Path) -> None:
    _, answers, page = made(tmp_path)
    chart = figure(page, "Reliability")
    averaged = answers.outputs.mean(axis=0)
    right = averaged.argmax(axis=1) == answers.truth
    share, confidence = calibration_curve(
        right, averaged.max(axis=1), n_bins=10, strategy="quantile"
    )
    found = points(chart, "ensemble (average)")
    np.testing.assert_allclose(found, np.column_stack([confidence, share]), atol=0.005)
    assert {line.text for line in chart.all("polyline")} == {"ensemble (average)", "a", "b", "c"}


def test_the_risk_at_full_coverage_is_the_share_of_wrong_answers(tmp_path: Path) -> None:
    _, answers, page = made(tmp_path)
    chart = figure(page, "Risk against coverage")
    for name, output in zip("abc", answers.outputs, strict=True):
        wrong = np.mean(output.argmax(axis=1) != answers.truth)
        assert points(chart, name)[-1] == pytest.approx((1.0, wrong), abs=0.005)
    [rows] = [
        table(each) for each in page.all("table") if "of the rows answered" in table(each)[0][0]
    ]
    wrong = np.mean(answers.outputs.mean(axis=0).argmax(axis=1) != answers.truth)
    assert rows[0][1] == "100%"
    assert float(rows[1][1]) == pytest.approx(wrong, abs=5e-5)


def test_the_matrices_are_those_of_the_stored_outputs(tmp_path: Path) -> None:
    _, answers, page = made(tmp_path)
    apart, errors = page.all("table", class_="heat")[-2:]
    winners = answers.outputs.argmax(axis=2)
    expected = [[f"{100 * np.mean(one != other):.1f}%" for other in winners] for one in winners]
    assert [row[1:] for row in table(apart)[1:]] == expected
    correlated = np.corrcoef(winners != answers.truth)
    assert [row[1:] for row in table(errors)[1:]] == [
        [f"{value:.2f}" for value in row] for row in correlated
    ]
    [confused] = page.all("table", class_="confusion")
    counts = confusion_matrix(
        answers.truth, answers.outputs.mean(axis=0).argmax(axis=1), labels=range(LABELS)
    )
    lines = table(confused)[1:]
    places = [NAMES.index(line[1]) for line in lines]
    for place, line in zip(places, lines, strict=True):
        assert [int(cell or 0) for cell in line[2:-2]] == counts[place, places].tolist()
        assert int(line[-1]) == counts[place].sum()


def test_learning_curves_have_a_line_for_each_member(tmp_path: Path) -> None:
    _, _, page = made(tmp_path)
    chart = figure(page, "Learning: intents")
    assert points(chart, "a") == [
        pytest.approx((10, 2.0), abs=0.02),
        pytest.approx((20, 1.0), abs=0.02),
    ]
    assert points(chart, "a, held out") == [pytest.approx((20, 1.5), abs=0.02)]
    assert [each.text for each in chart.all("li")] == ["a", "b"]
    assert points(figure(page, "Learning: base 1/pretraining"), "base 1/pretraining")


def test_the_metrics_have_the_diversity_and_the_versions(tmp_path: Path) -> None:
    bundle, _, page = made(tmp_path)
    metrics = written_metrics(bundle)
    assert metrics["diversity"][0]["members"] == ["a", "b", "c"]
    assert metrics["versions"]["transformers"]
    said = {each.text for each in page.all("section", id="made-with")[0].all("dt")}
    assert {"Python", "transformers", "machine"} <= said
    [commands] = page.all("section", id="made-with")[0].all("pre")
    assert commands.text.startswith(RECORDED["command"])
    assert f"choir serve {bundle.path.name}" in commands.text


def board(**changes: Any) -> dict[str, Any]:
    def rung(name: str, kind: str, passes: float, loss: float | None) -> dict[str, Any]:
        scores = {"accuracy": 0.9} | ({} if loss is None else {"log_loss": loss})
        behind = (
            {"difference": loss, "interval": [loss - 0.1, loss + 0.1], "p": 0.5} if loss else None
        )
        return {
            "name": name,
            "kind": kind,
            "passes": passes,
            "milliseconds": 3.5 * passes,
            "scores": scores,
            "intervals": {key: [value - 0.05, value + 0.05] for key, value in scores.items()},
            "validation": scores,
            "behind_best": behind,
        }

    rungs = [
        rung("average", "fusion", 3, 0.5),
        rung("a", "member", 1, 0.6),
        rung("vote", "fusion", 3, None),
        rung("linear", "merged", 1, 9.0),
    ]
    return {
        "ensemble": "intents",
        "metric": "log_loss",
        "rows": 300,
        "recommended": "a",
        "reason": "It is cheap.",
        "rungs": rungs,
    } | changes


def test_the_leaderboard_is_a_plot_with_the_recommendation_marked(tmp_path: Path) -> None:
    bundle, _, before = made(tmp_path)
    assert "Leaderboard" not in {each.text for each in before.all("h3")}
    (bundle.path / "report" / "leaderboard-intents.json").write_text(json.dumps(board()))
    draw_page(bundle)
    page = drawn(bundle)
    assert page.all("p", class_="verdict")[0].text == "intents: serve a. It is cheap."
    chart = figure(page, "Quality against cost")
    [chosen] = chart.all("g", class_="chosen")
    assert chosen.all("title")[0].text == "2 a (member): 3.5, 0.6000"
    assert {each.all("text")[0].text for each in chart.all("g", class_="mark")} == {"1", "2", "4"}
    assert "at the edge: 4" in chart.text
    [row] = page.all("tr", class_="served")[:1]
    assert [cell.text for cell in row.all("td")][:5] == ["2", "a member", "0.6000", "1", "3.5"]


def test_a_broken_leaderboard_costs_only_itself(tmp_path: Path) -> None:
    bundle, _, _ = made(tmp_path)
    (bundle.path / "report" / "leaderboard-intents.json").write_text("{")
    draw_page(bundle)
    page = drawn(bundle)
    assert any("leaderboard of intents cannot be read" in each.text for each in page.all("p"))
    assert figure(page, "Reliability")


def test_a_bundle_without_stored_outputs_keeps_its_tables(tmp_path: Path) -> None:
    bundle, _, _ = made(tmp_path)
    for file in (bundle.path / "fusion").rglob("*.safetensors"):
        file.unlink()
    draw_page(bundle)
    page = drawn(bundle)
    assert any("does not store what these members answer" in each.text for each in page.all("p"))
    assert page.all("tr", class_="served")


def test_the_report_of_an_earlier_release_is_drawn_too(tmp_path: Path) -> None:
    bundle, _, _ = made(tmp_path)
    file = bundle.path / "report" / "metrics.json"
    old = {key: written_metrics(bundle)[key] for key in ("reports", "data")}
    file.write_text(json.dumps(old | {"recipe": "older", "choir": "0.1.0"}))
    draw_page(bundle)
    page = drawn(bundle)
    assert page.all("h1")[0].text == "older"
    assert figure(page, "Reliability")


@pytest.mark.parametrize("content", [None, "{}", "[]", "{", '{"recipe": "x", "reports": [1]}'])
def test_a_bundle_without_figures_is_refused_with_a_sentence(
    tmp_path: Path, content: str | None
) -> None:
    bundle, _, _ = made(tmp_path)
    file = bundle.path / "report" / "metrics.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ReportError, match=r"metrics\.json"):
        draw_page(bundle)


def test_values_and_sets_have_a_page_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=100)
    told = values + random.normal(0, 0.3, (2, 100))
    bundle = stored_bundle(tmp_path / "values", told, values, task="regression")
    write_report(bundle, "values", [plain_report(bundle)], {})
    page = drawn(bundle)
    assert figure(page, "Risk against coverage")
    assert not [each for each in page.all("strong") if each.text == "Reliability"]
    truth = random.random((100, 3)) < 0.4
    outputs = np.clip(truth * 0.6 + 0.2 + random.normal(0, 0.25, (2, 100, 3)), 0.01, 0.99)
    bundle = stored_bundle(
        tmp_path / "sets", outputs, truth, task="multilabel", labels=["x", "y", "z"]
    )
    write_report(bundle, "sets", [plain_report(bundle)], {})
    assert figure(drawn(bundle), "Reliability")


def plain_report(bundle: Bundle) -> EvaluationReport:
    [ensemble] = bundle.ensembles()
    answers = ValidationAnswers.read(bundle, ensemble)
    assert answers is not None
    rows = Labelled([""] * 100, [""] * 100, "validation")
    return label_report(ensemble, rows, answers.outputs, answers.truth, {"average": answers.served})
