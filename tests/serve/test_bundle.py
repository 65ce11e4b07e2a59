"""The bundle on disk: what is read, what is refused, and what is written."""

import json
import os
from pathlib import Path

import pytest

from serve.bundle import BaseSpec, Bundle, BundleError
from serve.digest import folder_digest
from serve.manifest import AdapterRef, Ensemble
from tests.serve.manifests import DIGEST, manifest


def write(bundle: Bundle, document: dict, where: str = "ensembles/intents/1.json") -> None:
    file = bundle.path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


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


def test_an_unsound_manifest_is_refused_by_its_file_and_field(bundle):
    write(bundle, manifest(colour="red"))
    with pytest.raises(BundleError) as raised:
        bundle.ensembles()
    assert str(raised.value).startswith("ensembles/intents/1.json: colour: this field is not known")
    assert bundle.verify() == [str(raised.value)]


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


def test_a_base_on_a_hub_is_named_with_its_revision(tmp_path):
    spec = BaseSpec(id="org/name", revision="abc", kind="encoder")
    bundle = Bundle.create(tmp_path / "bundle", spec)
    again = Bundle.open(Path(bundle.path))
    assert (again.base_source, again.base_revision) == ("org/name", "abc")
    assert again.base_kind() == "encoder"


def test_a_training_that_has_not_got_far_is_said(tmp_path: Path) -> None:
    (tmp_path / ".choir-train").mkdir()
    with pytest.raises(BundleError, match=r"is not a bundle.*choir train RECIPE --resume"):
        Bundle.open(tmp_path)
