from pathlib import Path

import pytest
from typer.testing import CliRunner

from choir_cli.main import app
from training.data.annotation.review import Decision, read_decisions, read_queue, write_queue
from training.data.suspect import Suspect
from training.recipe.values import RecipeError

SUSPECTS = [
    Suspect("my card", "card", 0.8, "intents@1", "pool.csv:2"),
    Suspect("lost it", "cash", 0.6, "intents@1", "pool.csv:3"),
    Suspect("hello", "", 0.0, "no rule applies", "pool.csv:4"),
    Suspect("take money", "cash", 0.5, "suspected label error", "train.csv:9", given="card"),
]


def test_a_queue_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_queue(tmp_path / "review.jsonl", SUSPECTS)
    assert read_queue(tmp_path / "review.jsonl") == SUSPECTS


def test_a_person_decides_stops_and_goes_on(tmp_path: Path) -> None:
    queue, target = tmp_path / "review.jsonl", tmp_path / "reviewed.jsonl"
    write_queue(queue, SUSPECTS)
    # As suggested; not a label, then the first one; stop.
    first = CliRunner().invoke(
        app, ["annotate", str(queue), "--out", str(target)], input="\nbank\n1\nq\n"
    )
    assert first.exit_code == 0, first.output
    assert "'bank' is no label" in first.output
    assert read_decisions(target) == [Decision("my card", "card"), Decision("lost it", "card")]
    # Nothing is suggested: Enter asks again, a dash rejects; later.
    second = CliRunner().invoke(
        app, ["annotate", str(queue), "--out", str(target)], input="\n-\ns\n"
    )
    assert second.exit_code == 0, second.output
    assert "1/2" in second.output
    assert "given: card" in second.output
    assert read_decisions(target)[2:] == [Decision("hello", None)]
    third = CliRunner().invoke(app, ["annotate", str(queue), "--out", str(target)], input="cash\n")
    assert read_decisions(target)[3:] == [Decision("take money", "cash")]
    assert "4 decisions" in third.output


def test_labels_may_come_from_a_file(tmp_path: Path) -> None:
    queue, target = tmp_path / "review.jsonl", tmp_path / "reviewed.jsonl"
    write_queue(queue, SUSPECTS[2:3])
    (tmp_path / "labels.txt").write_text("greeting\nfarewell\n")
    arguments = [
        "annotate",
        str(queue),
        "--out",
        str(target),
        "--labels",
        str(tmp_path / "labels.txt"),
    ]
    assert CliRunner().invoke(app, arguments, input="1\n").exit_code == 0
    assert read_decisions(target) == [Decision("hello", "greeting")]


@pytest.mark.parametrize("content", ['{"a": 1}\n', "nonsense\n", "[1]\n", b"\xff\xfe"])
def test_another_file_is_refused_in_one_sentence(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_queue, read_decisions):
        with pytest.raises(RecipeError) as refusal:
            read(file)
        assert "\n" not in str(refusal.value)
