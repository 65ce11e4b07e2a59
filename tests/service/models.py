"""A base, adapters and a bundle of two ensembles, with what PEFT answers for every adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.bundle import BaseSpec, Bundle
from serve.digest import folder_digest
from serve.fusion.selective.abstain import AbstainFit
from serve.fusion.selective.early_exit import ExitFit
from serve.fusion.selective.record import SelectiveFit, digests, numbers_digest
from serve.manifest import Ensemble
from tests.serve import tiny
from tests.service.load import References

LABELS = ["A", "B", "C", "D", "card lost", "card lost abroad"]
TEMPLATE = "{text}\nIntent:"
TEXTS = [
    "where is my card",
    "my transfer is still pending",
    "I want to top up my account with another card",
    "please cancel the payment that I made this morning",
]


@dataclass(frozen=True)
class Models:
    """A base with adapters in folders of their own, and a bundle with two ensembles."""

    root: Path
    base: Path
    adapters: dict[str, Path]
    bundle: Path
    references: References

    def uri(self, adapter: str) -> str:
        return self.adapters[adapter].as_uri()

    def digest(self, adapter: str) -> str:
        return folder_digest(self.adapters[adapter])


def make_models(root: Path) -> Models:
    """Everything on disk, and what PEFT answers."""
    base = tiny.causal_base(root / "base")
    adapters = {
        name: tiny.lora(base, root / "adapters" / name, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate({"a": 8, "b": 16, "c": 4, "a2": 8, "b2": 8}.items(), 1)
    }
    adapters |= {
        "prefix": tiny.prefix(base, root / "adapters" / "prefix", seed=6, tokens=20),
        "prompt": tiny.prompt(base, root / "adapters" / "prompt", seed=7, tokens=7),
    }
    bundle = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    refs = {name: bundle.add_adapter(f"intents-{name}", adapters[name]) for name in ("a", "b", "c")}
    members = [{"name": name, "adapters": [ref]} for name, ref in refs.items()]
    common = {"format": 1, "version": 1, "members": members}
    bundle.write_ensemble(
        Ensemble.model_validate(
            {
                **common,
                "name": "intents",
                "task": "classification",
                "labels": LABELS,
                "template": TEMPLATE,
                "fusion": {"method": "average"},
            }
        )
    )
    bundle.write_ensemble(
        Ensemble.model_validate(
            {**common, "name": "replies", "task": "generation", "fusion": {"method": "vote"}}
        )
    )
    texts = [f" {label}" for label in LABELS]
    references = {}
    for folder in adapters.values():
        peft = tiny.Reference(base, folder)
        references[folder_digest(folder)] = {
            text: peft.probabilities(TEMPLATE.format(text=text), texts) for text in TEXTS
        }
    said = [references[ref.digest] for ref in refs.values()]
    bundle.write_ensemble(_careful(bundle.ensemble("intents"), said))
    return Models(root, base, adapters, bundle.path, references)


def _careful(ensemble: Ensemble, said: Sequence[Mapping[str, Sequence[float]]]) -> Ensemble:
    """The ensemble as `careful`, which may stop early and abstain. Of the texts, one stops after member b and one
    abstains; `said` is what each member answers to each text."""
    first = sorted(max(said[1][text]) for text in TEXTS)
    fused = sorted(max(np.mean([own[text] for own in said], axis=0)) for text in TEXTS)
    careful = ensemble.model_copy(update={"name": "careful"})
    return SelectiveFit(
        digests=digests(careful),
        numbers=numbers_digest(careful),
        early_exit=ExitFit(
            order=["b", "c", "a"],
            rows=100,
            thresholds=[sum(first[-2:]) / 2, 0.0],
            bounds=[0.05, 0.5],
            asked=[2.0, 1.0],
        ),
        abstain=(
            AbstainFit(thresholds=[sum(fused[:2]) / 2, -1.0], covered=[900, 1000], errors=[0, 99]),
        ),
    ).written(careful)
