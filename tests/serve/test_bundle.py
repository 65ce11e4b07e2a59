"""The bundle on disk: what is read, what is refused, and what is written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from serve.bundle import BaseSpec, Bundle, BundleError
from serve.digest import folder_digest
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member

DIGEST = "sha256:" + "0" * 64


def manifest(**fields):
    """A small sound manifest as a person would write it."""
    return {
        "format": 1,
        "name": "intents",
        "version": 1,
        "task": "classification",
        "members": [{"name": "a", "adapters": []}, {"name": "b", "adapters": []}],
        "fusion": {"method": "average"},
        "labels": ["yes", "no"],
    } | fields


@pytest.fixture
def bundle(tmp_path, causal_base) -> Bundle:
    return Bundle.create(tmp_path / "bundle", BaseSpec(path=str(causal_base)))


def write(bundle: Bundle, document: dict, where: str = "ensembles/intents/1.json") -> None:
    file = bundle.path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def test_the_digest_is_what_the_documented_command_prints(tmp_path):
    folder = tmp_path / "folder"
    for name in ("b.json", "B.json", "a.safetensors", "sub/c", "sub.d", "sub-e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 3)
    listed = "find . -type f -printf '%P\\n' | LC_ALL=C sort"
    command = f"{listed} | xargs sha256sum | sha256sum | cut -d' ' -f1"
    printed = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    assert folder_digest(folder) == f"sha256:{printed.stdout.strip()}"


def test_the_digest_changes_with_content_and_with_names(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    seen = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_text(text)
        seen.add(folder_digest(folder))
    assert len(seen) == 3


@pytest.mark.parametrize("target", ["/etc/hostname", "a", "/etc"])
def test_no_digest_of_links_empty_or_missing_folders(tmp_path, target):
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match="not a folder"):
        folder_digest(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="empty"):
        folder_digest(folder)
    (folder / "a").write_text("a")
    (folder / "link").symlink_to(target)
    with pytest.raises(ValueError, match="symbolic link"):
        folder_digest(folder)


def test_a_bundle_written_by_hand_is_read(tmp_path, causal_base):
    (tmp_path / "base").symlink_to(causal_base)
    (tmp_path / "bundle.json").write_text('{"format": 1, "base": {"path": "base"}}')
    bundle = Bundle.open(tmp_path)
    write(bundle, manifest())
    write(bundle, manifest(version=10), "ensembles/intents/10.json")
    write(bundle, manifest(version=9), "ensembles/intents/9.json")
    assert bundle.base_source == str(causal_base)
    assert bundle.base_kind() == "causal"
    assert [each.id for each in bundle.ensembles()] == ["intents@1", "intents@9", "intents@10"]
    assert bundle.ensemble("intents").version == 10
    assert bundle.ensemble("intents", 9).version == 9
    assert bundle.verify() == []
    with pytest.raises(BundleError, match="no ensemble intents@2; it has: intents@1"):
        bundle.ensemble("intents", 2)


def test_defaults_of_the_contract():
    ensemble = Ensemble.model_validate(manifest())
    assert ensemble.template == "{text}"
    assert ensemble.label_scoring == "sum"
    assert ensemble.on_member_error == "fail"
    assert ensemble.fusion == FusionSpec(
        method="average", space="probability", temperature=1, plausibility=0
    )
    assert ensemble.weights() == [0.5, 0.5]


def test_weights_are_normalised_and_default_to_an_equal_share():
    members = [
        {"name": "a", "weight": 1, "adapters": []},
        {"name": "b", "adapters": []},
    ]
    ensemble = Ensemble.model_validate(manifest(members=members))
    assert ensemble.weights() == pytest.approx([2 / 3, 1 / 3])
    product = {"task": "generation", "labels": None, "fusion": {"method": "product"}}
    members[0]["weight"] = -0.5
    contrastive = Ensemble.model_validate(manifest(members=members, **product))
    assert contrastive.weights() == [-0.5, 0.5]


def test_digests_are_distinct_and_in_order():
    other = DIGEST.replace("0", "1")
    members = [
        {"name": name, "adapters": [{"adapter": "x", "digest": digest}]}
        for name, digest in (("a", other), ("b", DIGEST), ("c", other))
    ]
    assert Ensemble.model_validate(manifest(members=members)).digests == (other, DIGEST)


ONE = {"name": "a", "adapters": []}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"colour": "red"}, "colour: this field is not known"),
        ({"format": 2}, "format"),
        ({"name": "Intents"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"task": "clustering"}, "task"),
        ({"members": []}, "members"),
        ({"members": [ONE, ONE]}, "the member 'a' is given twice"),
        ({"members": [ONE | {"weight": -1}]}, "negative"),
        ({"members": [ONE | {"weight": 0}]}, "all weights are 0"),
        ({"members": [ONE | {"weight": float("nan")}]}, "weight"),
        (
            {
                "task": "generation",
                "labels": None,
                "fusion": {"method": "product"},
                "members": [ONE | {"weight": -1e308}],
            },
            "the weight of 'a' is too large for product",
        ),
        ({"members": [ONE | {"weight": "1"}]}, "weight"),
        ({"members": [ONE | {"adapters": [{"adapter": "x", "digest": "abc"}]}]}, "digest"),
        ({"members": [ONE | {"adapters": [{"adapter": "x", "digest": DIGEST}] * 2}]}, "twice"),
        ({"labels": None}, "needs 'labels'"),
        ({"labels": ["yes"]}, "at least 2"),
        ({"labels": ["yes", "yes"]}, "the label 'yes' is given twice"),
        ({"labels": ["yes", ""]}, "labels"),
        ({"task": "generation", "fusion": {"method": "vote"}}, "'labels' is for"),
        ({"fusion": {"method": "product"}}, "not for classification; choose one of average"),
        ({"fusion": {"method": "mean"}}, "method"),
        ({"fusion": {"method": "stack"}}, "needs 'model' and 'parameters'"),
        ({"fusion": {"method": "average", "parameters": "fusion/x.json"}}, "go together"),
        ({"fusion": {"method": "average", "temperature": 0}}, "temperature"),
        ({"fusion": {"method": "vote", "temperature": 2}}, "shares of votes"),
        ({"fusion": {"method": "vote", "space": "log"}}, "average and weighted_average"),
        ({"fusion": {"method": "vote", "extract": {"regex": "x"}}}, "for generation"),
        ({"template": "Intent:"}, "must contain {text}"),
        ({"verbalizers": {"maybe": " perhaps"}}, "'maybe', which is not one of the labels"),
        ({"thresholds": {"yes": 0.5}}, "for multilabel"),
        ({"task": "multilabel", "thresholds": {"yes": 1.5}}, "thresholds"),
        ({"golden": [{"input": "x", "label": "maybe"}]}, "not one of the labels"),
        ({"label_scoring": "max"}, "label_scoring"),
    ],
)
def test_an_unsound_manifest_is_refused_by_its_file_and_field(bundle, fields, reason):
    write(bundle, manifest(**fields))
    with pytest.raises(BundleError) as raised:
        bundle.ensembles()
    assert reason in str(raised.value)
    assert str(raised.value).startswith("ensembles/intents/1.json: ")
    assert "\n" not in str(raised.value)
    assert bundle.verify() == [str(raised.value)]


@pytest.mark.parametrize("path", ["../x.json", "/etc/x.json", "fusion/../../x", "a//b", "a\\b", ""])
def test_parameters_stay_below_the_bundle(path):
    stack = {"method": "stack", "model": "logistic_regression", "parameters": path}
    with pytest.raises(ValidationError, match="below the bundle"):
        Ensemble.model_validate(manifest(fusion=stack))


@pytest.mark.parametrize(
    ("extract", "reason"),
    [
        ({"regex": "("}, "not a regular expression"),
        ({"regex": "(a)(?P<last>b)", "group": 3}, "no group 3; it has 0, 1, 2, last"),
        ({"regex": "(a)", "group": "last"}, "no group 'last'"),
        ({"regex": ""}, "at least 1 character"),
    ],
)
def test_an_extraction_rule_must_compile(extract, reason):
    vote = {"method": "vote", "extract": extract}
    with pytest.raises(ValidationError, match=reason):
        Ensemble.model_validate(manifest(task="generation", labels=None, fusion=vote))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "bundle.json: "),
        ('{"base": {"path": "base"}}', "format: this field is required"),
        ('{"format": 1, "base": {}}', "exactly one of 'path' and 'id'"),
        ('{"format": 1, "base": {"path": "b", "id": "o/n"}}', "exactly one of"),
        ('{"format": 1, "base": {"path": "b", "revision": "r"}}', "'id' only"),
        ('{"format": 1, "base": {"path": "b", "kind": "rnn"}}', "base.kind"),
        ('{"format": 3, "base": {"path": "b"}}', "format"),
    ],
)
def test_an_unsound_bundle_json_is_refused_in_a_sentence(tmp_path, text, reason):
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError) as raised:
        Bundle.open(tmp_path)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_manifest_must_lie_where_its_name_and_version_say(bundle):
    write(bundle, manifest(), "ensembles/intents/2.json")
    with pytest.raises(BundleError, match="holds intents@1; its path must be"):
        bundle.ensembles()


def test_the_kind_of_base_comes_from_its_config_unless_given(tmp_path, causal_base, encoder_base):
    def kind(name, **spec):
        return Bundle.create(tmp_path / name, BaseSpec(**spec)).base_kind()

    assert kind("1", path=str(causal_base)) == "causal"
    assert kind("2", path=str(encoder_base)) == "encoder"
    assert kind("3", path=str(tmp_path / "nothing"), kind="encoder") == "encoder"
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetModel"]}')
    with pytest.raises(BundleError, match=r"unknown kind.*ResNetModel"):
        kind("4", path=str(tmp_path))
    with pytest.raises(BundleError, match="no readable config"):
        kind("5", path=str(tmp_path / "nothing"))


def test_adding_an_adapter_copies_its_own_files_and_names_them_by_digest(
    bundle, causal_base, make_adapter
):
    adapter = make_adapter(causal_base)
    as_peft_saved_it = folder_digest(adapter.path)
    (adapter.path / "training_args.bin").write_bytes(b"pickle")
    ref = bundle.add_adapter("intents-a", adapter.path)
    assert ref.digest == as_peft_saved_it
    folder = bundle.adapter_dir(ref)
    digest12 = ref.digest.removeprefix("sha256:")[:12]
    assert folder == bundle.path / "adapters" / "intents-a" / digest12
    assert "training_args.bin" not in os.listdir(folder)
    assert folder_digest(folder) == ref.digest
    assert bundle.add_adapter("intents-a", adapter.path) == ref
    assert os.listdir(folder.parent) == [digest12]


def test_adding_refuses_wrong_names_and_folders_without_an_adapter(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"The adapter name '\.\./a'"):
        bundle.add_adapter("../a", tmp_path)
    with pytest.raises(BundleError, match=r"no adapter_config\.json"):
        bundle.add_adapter("a", tmp_path)
    assert not (bundle.path / "adapters").exists()


def test_an_adapter_that_is_not_there_is_named(bundle):
    ref = AdapterRef(adapter="x", digest=DIGEST)
    with pytest.raises(BundleError, match="adapters/x/000000000000"):
        bundle.adapter_dir(ref)


def test_no_link_leads_out_of_the_bundle(bundle, tmp_path):
    outside = tmp_path / "outside"
    (outside / "000000000000").mkdir(parents=True)
    (bundle.path / "adapters").mkdir()
    (bundle.path / "adapters" / "x").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.adapter_dir(AdapterRef(adapter="x", digest=DIGEST))
    (outside / "1.json").write_text(json.dumps(manifest()))
    (bundle.path / "ensembles").mkdir()
    (bundle.path / "ensembles" / "intents").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.ensembles()


def test_what_was_written_is_read_back_and_never_changes(bundle):
    ensemble = Ensemble.model_validate(
        manifest(
            fusion={"method": "average", "space": "log", "temperature": 1.25},
            scores={"validation": {"accuracy": 0.9}},
        )
    )
    file = bundle.write_ensemble(ensemble)
    assert file == bundle.path / "ensembles" / "intents" / "1.json"
    assert Bundle.open(bundle.path).ensemble("intents") == ensemble
    assert bundle.write_ensemble(ensemble) == file
    before = file.read_bytes()
    changed = ensemble.model_copy(update={"labels": ["no", "yes"]})
    with pytest.raises(BundleError, match="versions never change"):
        bundle.write_ensemble(changed)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["1.json"]
    with pytest.raises(BundleError, match="is a bundle already"):
        Bundle.create(bundle.path, BaseSpec(path="base"))


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


def test_a_base_on_a_hub_is_named_with_its_revision(tmp_path):
    spec = BaseSpec(id="org/name", revision="abc", kind="encoder")
    bundle = Bundle.create(tmp_path / "bundle", spec)
    again = Bundle.open(Path(bundle.path))
    assert (again.base_source, again.base_revision) == ("org/name", "abc")
    assert again.base_kind() == "encoder"


def test_the_contract_loads_without_heavy_packages():
    heavy = ("torch", "vllm", "ray", "transformers", "peft", "sklearn", "scipy", "lightgbm")
    code = (
        "import sys, serve.bundle, serve.adapter, serve.fusion.fuse, serve.fusion.fitting.weights;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_weights_whose_sum_is_no_number_are_shares_all_the_same():
    members = [ONE | {"name": name, "weight": weight} for name, weight in WEIGHTS.items()]
    fields = manifest(members=members, fusion={"method": "weighted_average"})
    assert Ensemble.model_validate(fields).weights() == pytest.approx([0.5, 0.5, 0.0])


WEIGHTS = {"a": 1e308, "b": 1e308, "c": 1.0}


def test_a_label_that_is_given_twice_is_found_among_many():
    labels = [f"label {number}" for number in range(100_000)]
    began = time.perf_counter()
    with pytest.raises(ValueError, match="'label 7' is given twice"):
        Ensemble.model_validate(manifest(labels=[*labels, "label 7"]))
    assert time.perf_counter() - began < 10, "every pair was compared"
