"""A bundle that stands in for the demo's, over a base of your own: the same ensembles, with LoRAs that nobody trained.

What members cost does not depend on what they have learned."""

import os
import shutil
from pathlib import Path

from serve.base.packages import PACKAGES, packaged_base
from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble, FusionSpec, Member
from tests.serve import tiny

VARIABLE = "BENCH_BASE"
"""Names the base: a folder, or a package. Without it, benches run on the demo's base or on a tiny one."""
FEWER = 40
"""On a base of one's own there are so many times fewer rounds: each takes longer, and is less noisy."""
LABELS = {
    "order_status": " order status",
    "late_delivery": " late delivery",
    "cancel_order": " cancel",
    "return_item": " return",
    "refund": " refund",
    "change_address": " address",
}


def chosen_base() -> Path | None:
    """Return the folder of the base that the benches are to run on; None if none is named."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    return packaged_base(name) if name in PACKAGES else Path(name)


def own_base() -> bool:
    """Return whether a base of one's own is chosen."""
    return bool(os.environ.get(VARIABLE))


def rounds(count: int) -> int:
    """Return how many of `count` rounds are run on the base that is chosen."""
    return max(2, count // FEWER) if own_base() else count


def stand_in(base: Path, folder: Path) -> Path:
    """Write the bundle `folder` over a copy of a causal `base`, and return it."""
    bundle = Bundle.create(folder, BaseSpec(path="base"))
    shutil.copytree(base, folder / "base")
    seed = 0
    for ensemble, names in (("replies", "abc"), ("intents", "abcd")):
        members = []
        for name in names:
            seed += 1
            source = folder.with_name("loras") / f"{ensemble}-{name}"
            lora = tiny.lora(base, source, seed=seed, rank=16, scale=0.02)
            reference = bundle.add_adapter(f"{ensemble}-{name}", lora)
            members.append(Member(name=name, adapters=[reference]))
        labelled = ensemble == "intents"
        bundle.write_ensemble(
            Ensemble(
                format=1,
                name=ensemble,
                version=1,
                task="classification" if labelled else "generation",
                members=members,
                fusion=FusionSpec(method="average"),
                labels=list(LABELS) if labelled else None,
                verbalizers=LABELS if labelled else {},
                template="User: {text}\n" + ("Intent:" if labelled else "Assistant:"),
            )
        )
    tiny.lora(base, folder / "candidates" / "intents-a-retrained", seed=99, rank=16, scale=0.02)
    return folder
