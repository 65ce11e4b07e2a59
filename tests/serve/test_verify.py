"""`Bundle.verify`: every reason why serving would refuse a bundle."""

import numpy as np
from safetensors.numpy import save_file

from serve.bundle import BaseSpec, Bundle
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from tests.serve.manifests import DIGEST, manifest


def test_verify_names_every_problem(bundle, causal_base, make_adapter):
    sound = bundle.add_adapter("sound", make_adapter(causal_base, name="1").path)
    other = make_adapter(causal_base, name="2")
    other.set_config(use_dora=True)
    refused = bundle.add_adapter("refused", other.path)
    changed = bundle.add_adapter("changed", make_adapter(causal_base, name="3", seed=1).path)
    (bundle.adapter_dir(changed) / "README.md").write_text("written later")
    refs = {"a": sound, "b": refused, "c": changed, "d": AdapterRef(adapter="x", digest=DIGEST)}
    members = [Member(name=name, adapters=[ref]) for name, ref in refs.items()]
    ensemble = Ensemble(
        format=1,
        name="intents",
        version=1,
        task="classification",
        members=members,
        fusion=FusionSpec(
            method="stack", model="logistic_regression", parameters="fusion/intents/1/stack.json"
        ),
        labels=["yes", "no"],
    )
    bundle.write_ensemble(ensemble)
    refusal, digest, missing, parameters = bundle.verify()
    assert "member b, adapter refused: DoRA is not served" in refusal
    assert changed.digest in digest
    assert "adapters/x/000000000000" in missing
    assert "needs fusion/intents/1/stack.json" in parameters
    assert len(bundle.verify(deep=False)) == 3


def test_verify_compares_heads_with_the_task_and_with_each_other(
    tmp_path, encoder_base, make_adapter
):
    bundle = Bundle.create(tmp_path / "heads", BaseSpec(path=str(encoder_base)))
    hidden = 16

    def adapter(name, rows, towers):
        folder = make_adapter(encoder_base, name=name, seed=len(name))
        head = {
            "weight": np.zeros((rows, hidden * (4 if towers else 1)), np.float32),
            "bias": np.zeros(rows, np.float32),
        }
        metadata = {"pair": "towers"} if towers else None
        save_file(head, folder.path / "head.safetensors", metadata=metadata)
        return bundle.add_adapter(name, folder.path)

    def write(version, *adapters):
        members = [{"name": ref.adapter, "adapters": [ref.model_dump()]} for ref in adapters]
        fields = {"name": "value", "task": "regression", "labels": None, "version": version}
        average = {"method": "average"}
        bundle.write_ensemble(
            Ensemble.model_validate(manifest(members=members, fusion=average, **fields))
        )
        return bundle.verify()

    one, other = adapter("a", 1, True), adapter("bb", 1, True)
    assert write(1, one, other) == []
    (mixed,) = write(2, one, adapter("ccc", 1, False))
    assert "value@2: the head of member a reads pairs and that of ccc single texts" in mixed
    wrong = write(3, one, adapter("dddd", 3, True))[-1]
    assert "member dddd" in wrong
    assert "3 rows, but the ensemble needs 1" in wrong


def test_verify_finds_a_missing_base_and_an_empty_bundle(tmp_path):
    bundle = Bundle.create(tmp_path / "bundle", BaseSpec(path="base"))
    (problem,) = bundle.verify()
    assert "no readable config.json" in problem
    sound = tmp_path / "other"
    sound.mkdir()
    (sound / "bundle.json").write_text('{"format": 1, "base": {"id": "o/n", "kind": "causal"}}')
    assert "no ensembles" in Bundle.open(sound).verify()[0]
