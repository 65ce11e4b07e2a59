"""The everyday act: one member of a served bundle is trained on new rows, and swapped in by the printed command."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve.bundle import Bundle
from serve.manifest import Member
from tests.service.load import Load
from tests.service.running import serving
from training.offline.members import OfflineMembers

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ASKS = {
    "card": ["my card is lost", "where is the new card", "the card does not work"],
    "transfer": ["the transfer is late", "send money abroad", "my transfer failed"],
    "top_up": ["add money to my account", "the top up failed", "how do i top up"],
}
TEXTS = [ask for asks in ASKS.values() for ask in asks]
RECIPE = {
    "name": "support",
    "base": {
        "kind": "encoder",
        "scratch": {
            "architecture": "bert",
            "hidden": 64,
            "layers": 1,
            "heads": 2,
            "vocabulary": 400,
            "context": 64,
            "epochs": 1,
        },
    },
    "data": {"train": "train.csv", "validation_fraction": 0.3},
    "ensembles": [
        {
            "name": "intents",
            "task": "classification",
            "label": "intent",
            "defaults": {"epochs": 2, "rank": 4},
            "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "bag": 0.5}],
            "fusion": {"method": "stack"},
        }
    ],
}


def write(file: Path, count: int, first: int) -> None:
    lines = ["text,intent"]
    for number in range(first, first + count):
        label = list(ASKS)[number % len(ASKS)]
        lines.append(f"{ASKS[label][number // 3 % 3]} number {number},{label}")
    file.write_text("\n".join(lines) + "\n")


def choir(folder: Path, *arguments: str, url: str = "") -> str:
    """Run the command and return what it prints to standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "choir_cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "CHOIR_URL": url} if url else {**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_peft(bundle: Bundle, members: Sequence[Member]) -> dict[str, dict[str, list[float]]]:
    """What PEFT answers by each member's adapter."""
    ensemble = bundle.ensemble("intents").model_copy(update={"members": [*members]})
    outputs = OfflineMembers(bundle, ensemble).outputs(TEXTS, None)
    return {
        member.adapters[0].digest: {
            text: row.tolist() for text, row in zip(TEXTS, own, strict=True)
        }
        for member, own in zip(members, outputs, strict=True)
    }


def test_a_member_is_retrained_and_swapped_in_while_the_server_answers(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", 150, first=0)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    choir(tmp_path, "train", "recipe.yaml", "--out", "bundle", "--no-timing")
    bundle = Bundle.open(tmp_path / "bundle")
    first = bundle.ensemble("intents")
    references = by_peft(bundle, first.members)
    with serving(
        bundle.path, "--dtype", "float32", "--gateways", "2", log=tmp_path / "serve.log"
    ) as service:
        load = Load(service.url, "intents", TEXTS, first.labels or [], references, clients=2)
        with load:
            load.wait_for(20)
            (tmp_path / "train.csv").unlink()
            write(tmp_path / "new.csv", 90, first=1000)
            said = choir(
                *(tmp_path, "train", "recipe.yaml", "--member", "a"),
                *("--into", "bundle", "--data", "new.csv"),
            )
            line = next(line for line in said.splitlines() if line.startswith("serve it: "))
            folder = next(line for line in said.splitlines() if line.startswith("adapter: "))
            new = bundle.add_adapter("intents-a", folder.removeprefix("adapter: "))
            trained = first.members[0].model_copy(update={"adapters": [new]})
            references |= by_peft(bundle, [trained])
            load.wait_for(20)
            name, *arguments = shlex.split(line.removeprefix("serve it: "))
            assert name == "choir"
            swapped = choir(tmp_path, *arguments, url=service.url)
            assert "version 1 -> 2" in swapped
            load.wait_for(40)
        assert load.failures == []
        assert set(load.versions) == {"intents@1", "intents@2"}
        body = {"model": "intents", "input": TEXTS[0], "return_members": True}
        [row] = service.post("/v1/predict", body).json()["data"]
        assert row["members"][0]["adapters"][0]["digest"] == new.digest
        view = service.get("/v1/ensembles/intents").json()
        assert view["fusion_fit"]["state"] == "refitted"
        print(f"\n{load.requests} requests, {len(load.failures)} failed; {swapped.strip()}")
