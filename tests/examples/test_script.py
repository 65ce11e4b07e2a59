"""examples/fuse_predictions.py, as a user would start it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

SCRIPT = Path(__file__).parents[2] / "examples" / "fuse_predictions.py"


def _figures(*arguments: str) -> dict[str, list[str]]:
    """Run the script; return its table as the name of each row -> its cells."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in table}


def test_it_shows_that_a_fusion_beats_every_model() -> None:
    figures = _figures()

    chosen = next(name for name, cells in figures.items() if len(cells) > 2)
    models = [float(cells[1]) for name, cells in figures.items() if name.startswith("model-")]
    assert len(models) == 4
    assert float(figures[chosen][1]) < min(models)


def test_its_figures_of_your_own_predictions_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(3, size=(2, 90))
    outputs = rng.dirichlet(np.ones(3), size=(2, 2, 90)) + np.eye(3)[truth][:, np.newaxis]
    outputs /= outputs.sum(axis=-1, keepdims=True)
    file = tmp_path / "predictions.npz"
    np.savez(
        file,
        validation=outputs[0],
        validation_truth=truth[0],
        test=outputs[1],
        test_truth=truth[1],
    )

    figures = _figures(str(file))

    for name, expected in {"model-1": outputs[1, 1], "average": outputs[1].mean(axis=0)}.items():
        accuracy = accuracy_score(truth[1], expected.argmax(axis=1))
        assert float(figures[name][0]) == pytest.approx(accuracy, abs=1e-4)
        if name != "average":  # an average may be tempered
            loss = log_loss(truth[1], expected, labels=range(3))
            assert float(figures[name][1]) == pytest.approx(loss, abs=1e-4)
