"""Which validation rows become golden inputs."""

import numpy as np

from serve.fusion.fused import Fused, FusedValues
from serve.manifest import Golden
from training.evaluation.evaluation import Labelled
from training.evaluation.golden_inputs import golden_answers, golden_cell, golden_texts


def test_texts_with_a_right_reply_become_golden_inputs() -> None:
    rows = Labelled.replies(["a?", "a?", "b?", "c?"], [" Yes.", "No.", "Maybe.", "Late."], "x")
    golden = golden_texts(rows, ["No.", "maybe.", "Late."], 8)
    assert golden == [
        Golden(input="a?", text="No.", max_tokens=8),
        Golden(input="c?", text="Late.", max_tokens=8),
    ]


def winners(*chosen: int) -> Fused:
    zeros = np.zeros(len(chosen))
    return Fused(np.eye(2)[list(chosen)], zeros, zeros, np.array(chosen))


def test_right_labels_become_golden_inputs() -> None:
    rows = Labelled(["a", "b", "c"], ["no", "yes", "no"], "x")
    golden = golden_answers(rows, np.array([0, 1, 0]), winners(0, 1, 1), ["no", "yes"])
    assert golden == [Golden(input="a", label="no"), Golden(input="b", label="yes")]


def test_images_are_golden_inputs_as_a_request_sends_them_unless_they_are_large() -> None:
    url = "data:image/png;base64,aaaa"
    cells = [url, f"{url}\nis it\nred?", f"{url}{'a' * 70_000}", "a text"]
    rows = Labelled(cells, ["no"] * 4, "x")
    golden = golden_answers(rows, np.zeros(4, dtype=int), winners(0, 0, 0, 0), ["no", "yes"])
    inputs = [each.input for each in golden]
    assert inputs == [{"image": url}, {"image": url, "text": "is it\nred?"}, "a text"]
    assert [golden_cell(each) for each in inputs] == [
        (cells[0], ""),
        (cells[1], ""),
        (cells[3], ""),
    ]


def test_pairs_stay_pairs_and_values_within_one_error_are_golden() -> None:
    rows = Labelled(["a", "b", "c"], ["1", "2", "3"], "x", pairs=["d", "e", "f"])
    values = FusedValues(np.array([1.1, 2.0, 4.0]), np.zeros(3))
    golden = golden_answers(rows, np.array([1.0, 2.0, 3.0]), values, [])
    assert [each.input for each in golden] == [
        {"text": "a", "text_pair": "d"},
        {"text": "b", "text_pair": "e"},
    ]
    error = np.sqrt((0.1**2 + 1.0) / 3)
    assert [each.value for each in golden] == [1.0, 2.0]
    assert all(abs((each.tolerance or 0) - 2 * error) < 0.01 for each in golden)
