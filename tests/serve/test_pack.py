"""Packing: PEFT folders as they are become a bundle that serving takes, or nothing at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.bundle import Bundle, BundleError
from serve.digest import folder_digest
from serve.pack import pack

Options = dict[str, Any]


@pytest.fixture
def options(tmp_path: Path, causal_base: Path, make_adapter: Callable[..., Any]) -> Options:
    return {
        "base": str(causal_base),
        "adapters": {
            "a": make_adapter(causal_base, "a", seed=1).path,
            "b": make_adapter(causal_base, "b", seed=2).path,
        },
        "out": tmp_path / "bundle",
        "task": "classification",
        "fusion": "average",
        "labels": ["yes", "no"],
    }


def test_packs_a_member_with_two_adapters(
    options: Options, causal_base: Path, make_soft: Callable[..., Any]
) -> None:
    prefix, prompt = (make_soft(causal_base, kind).path for kind in ("prefix", "prompt"))
    lora = options["adapters"]["a"]
    options["adapters"] = {"a": [lora, prefix], "b": prompt}
    (ensemble,) = pack(**options).ensembles()
    names = [[ref.adapter for ref in member.adapters] for member in ensemble.members]
    assert names == [["a", "a-2"], ["b"]]
    assert ensemble.digests == tuple(folder_digest(path) for path in (lora, prefix, prompt))


def test_a_pair_that_makes_no_member_is_refused(
    options: Options, causal_base: Path, make_soft: Callable[..., Any]
) -> None:
    soft = [make_soft(causal_base, kind).path for kind in ("prefix", "prompt")]
    for pair, reason in (
        (list(options["adapters"].values()), "two LoRAs"),
        (soft, "prefix and prompt"),
    ):
        with pytest.raises(BundleError, match=f"member a, .*{reason}"):
            pack(**options | {"adapters": {"a": pair}})


def test_an_encoder_base_takes_no_virtual_tokens(
    options: Options, causal_base: Path, encoder_base: Path, make_soft: Callable[..., Any]
) -> None:
    given = {"base": str(encoder_base), "adapters": {"a": make_soft(causal_base, "prompt").path}}
    with pytest.raises(BundleError, match="an encoder base takes LoRA adapters only"):
        pack(**options | given)


def test_packs_a_bundle_that_verifies(options: Options, causal_base: Path) -> None:
    pack(**options, name="answers", template="Q: {text}\nA:", verbalizers={"yes": " y"})
    bundle = Bundle.open(options["out"])
    (ensemble,) = bundle.ensembles()
    assert bundle.verify() == []
    assert bundle.base_source == str(causal_base.resolve())
    assert bundle.base_kind() == "causal"
    assert ensemble.id == "answers@1"
    assert ensemble.labels == ["yes", "no"]
    assert ensemble.template == "Q: {text}\nA:"
    assert [member.name for member in ensemble.members] == ["a", "b"]
    for member in ensemble.members:
        (ref,) = member.adapters
        assert folder_digest(bundle.adapter_dir(ref)) == ref.digest
        original = options["adapters"][member.name] / "adapter_model.safetensors"
        packed = bundle.adapter_dir(ref) / "adapter_model.safetensors"
        assert packed.read_bytes() == original.read_bytes()


def test_weights_reach_the_manifest(options: Options) -> None:
    bundle = pack(**{**options, "fusion": "weighted_average", "weights": {"a": 3.0, "b": 1.0}})
    assert bundle.ensemble("ensemble").weights() == [0.75, 0.25]


@pytest.mark.parametrize("method", ["vote", "mbr"])
def test_packs_an_ensemble_that_chooses_among_whole_answers(options: Options, method: str) -> None:
    given = {"task": "generation", "labels": None, "fusion": method}
    bundle = pack(**options | given)
    assert bundle.ensemble("ensemble").fusion.method == method
    assert bundle.verify() == []


def test_a_hub_id_is_kept_with_its_revision(
    options: Options, causal_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.bundle.Bundle._fetched_config", lambda bundle: causal_base)
    base = pack(**{**options, "base": "org/name", "revision": "abc"}).info.base
    assert (base.id, base.revision, base.path) == ("org/name", "abc", None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": "./not-there"}, "neither a folder nor a hub id"),
        ({"revision": "abc"}, "has no revisions"),
        ({"adapters": {}}, "at least one adapter"),
        ({"fusion": "stack"}, "has to be fitted"),
        ({"fusion": "majority"}, r"fusion\.method"),
        ({"labels": None}, "needs 'labels'"),
        ({"labels": ["yes", "yes"]}, "given twice"),
        ({"template": "no place"}, "must contain {text}"),
        ({"weights": {"z": 1.0}}, "belongs to none of a, b"),
        ({"task": "generation"}, "is for classification"),
        ({"task": "multilabel"}, "needs adapters with heads"),
        ({"task": "regression", "labels": None}, "needs adapters with heads"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    options: Options, change: Options, says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        pack(**{**options, **change})
    assert not options["out"].exists()
    assert list(options["out"].parent.glob(".pack-*")) == []


def test_an_adapter_of_another_base_is_refused(
    options: Options, encoder_base: Path, make_adapter: Callable[..., Any]
) -> None:
    foreign = make_adapter(encoder_base, "foreign", target_modules=["query", "value"])
    options["adapters"]["b"] = foreign.path
    with pytest.raises(BundleError, match=r"member b"):
        pack(**options)
    assert not options["out"].exists()


def test_an_existing_folder_is_never_touched(options: Options) -> None:
    options["out"].mkdir()
    with pytest.raises(BundleError, match="exists already"):
        pack(**options)


def test_a_causal_base_is_read_by_heads_where_every_member_has_one(
    options: Options, causal_base: Path, make_adapter: Callable[..., Any]
) -> None:
    adapters = {name: make_adapter(causal_base, f"with-{name}", seed=3) for name in "ab"}
    given = options | {"adapters": {name: each.path for name, each in adapters.items()}}
    adapters["a"].add_head(labels=2)
    with pytest.raises(BundleError, match=r'say "kind": "encoder" in bundle\.json'):
        pack(**given)
    adapters["b"].add_head(labels=2)
    assert pack(**given).base_kind() == "encoder"


def test_a_bundle_that_is_gone_with_its_server_knows_where_its_adapters_came_from(
    options: Options,
) -> None:
    plain = pack(**options)
    recorded = pack(**options | {"out": options["out"].with_name("temporary")}, record_sources=True)
    for bundle, folders in (
        (
            plain,
            [
                plain.adapter_dir(ref)
                for member in plain.ensembles()[0].members
                for ref in member.adapters
            ],
        ),
        (recorded, list(options["adapters"].values())),
    ):
        [ensemble] = bundle.ensembles()
        refs = [ref for member in ensemble.members for ref in member.adapters]
        assert [bundle.adapter_uri(ref) for ref in refs] == [each.as_uri() for each in folders]
        assert bundle.verify() == []
