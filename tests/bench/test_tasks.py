"""NLU++ (sets of intents) and STS-B (values of pairs), trained, served and compared: every served answer equals the
offline one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from choir_client import Choir, Prediction
from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from serve.fusion.fused import FusedSets, FusedValues
from tests.bench.measuring import report
from tests.service.running import serving

pytestmark = pytest.mark.bench

DATA = Path(os.environ.get("CHOIR_DATA", "../shared/data"))


def bundle_of(name: str, data: str) -> Bundle:
    """Trained here unless it is there: either takes minutes on 2 cores."""
    if not (DATA / data).exists():
        pytest.skip(f"{DATA / data} is not there; docs/results.md says where it comes from")
    from training.pipeline import train

    folder = Path(os.environ.get(f"{name.upper()}_BUNDLE", f".choir-demo/{name}"))
    if not (folder / "report" / "metrics.json").exists():
        train(Path(f"training/recipes/{name}.yaml"), folder, resume=True)
    return Bundle.open(folder)


def compared(
    bundle: Bundle, ensemble: str, tmp_path: Path
) -> tuple[Prediction, Any, np.ndarray, Any]:
    """What the server answers to all test rows, the offline fusion, the members offline, and the rows."""
    from training.evaluation.evaluation import labelled
    from training.execution.run import WORK, recorded_recipe
    from training.offline.members import OfflineMembers
    from training.preparation import load_splits

    recipe = recorded_recipe(bundle.path)
    assert recipe is not None
    rows = load_splits(recipe, bundle.path / WORK).test
    data = labelled(rows, "test", recipe, recipe.ensembles[0])
    manifest = bundle.ensemble(ensemble)
    members = OfflineMembers(bundle, manifest).outputs(data.texts, data.pairs)
    fused = Fusion.from_manifest(manifest, bundle.fusion_path(manifest))(members)
    inputs: list[Any] = list(data.texts)
    if data.pairs is not None:
        inputs = [
            {"text": one, "text_pair": two} for one, two in zip(data.texts, data.pairs, strict=True)
        ]
    arguments = ("--dtype", "float32", "--store", tmp_path / "store")
    with (
        serving(bundle.path, *arguments, log=tmp_path / "serve.log") as service,
        Choir(service.url) as choir,
    ):
        answer = choir.predict(ensemble, inputs, return_members=True)
    return answer, fused, members, data


@pytest.mark.timeout(7200)
def test_all_sets_of_intents_equal_the_offline_ones(tmp_path: Path) -> None:
    bundle = bundle_of("nlupp", "nlupp/banking/fold0.json")
    answer, fused, members, data = compared(bundle, "intents", tmp_path)
    assert isinstance(fused, FusedSets)
    manifest = bundle.ensemble("intents")
    labels = manifest.labels or []
    served = np.array([[row.probabilities[label] for label in labels] for row in answer.data])
    alone = np.array(
        [
            [[m.probabilities[label] for label in labels] for m in row.members or []]
            for row in answer.data
        ]
    )
    expected = [
        [label for label, chosen in zip(labels, row, strict=True) if chosen] for row in fused.chosen
    ]
    same = sum(said == right for said, right in zip(answer.label_sets, expected, strict=True))
    difference = np.abs(served - fused.probabilities).max()
    worst = np.abs(alone.transpose(1, 0, 2) - members).max()
    report(
        f"NLU++: {len(data.texts)} held-out messages over HTTP against PEFT offline",
        f"same set of intents     {same} of {len(data.texts)}",
        f"largest difference      {difference:.1e} fused, {worst:.1e} of a member",
    )
    assert max(difference, worst) < 1e-3
    # A probability within the rounding of its threshold may fall on either side.
    cuts = np.array([manifest.thresholds.get(label, 0.5) for label in labels])
    near = (np.abs(fused.probabilities - cuts) < 1e-4).any(axis=1)
    assert same >= len(data.texts) - near.sum()


@pytest.mark.timeout(7200)
def test_all_values_of_pairs_equal_the_offline_ones(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    bundle = bundle_of("stsb", "stsb/sts-test.csv")
    answer, fused, members, data = compared(bundle, "similarity", tmp_path)
    assert isinstance(fused, FusedValues)
    served = np.array(answer.values)
    alone = np.array([[member.value for member in row.members or []] for row in answer.data]).T
    difference = np.abs(served - fused.values).max()
    worst = np.abs(alone - members).max()
    truth = data.targets(bundle.ensemble("similarity"))
    correlation = spearmanr(served, truth).statistic
    report(
        f"STS-B: {len(data.texts)} test pairs over HTTP against PEFT offline",
        f"largest difference      {difference:.1e} fused, {worst:.1e} of a member (values from 0 to 5)",
        f"Spearman as served      {correlation:.4f}",
    )
    assert max(difference, worst) < 1e-3
    assert correlation >= 0.86
