"""What is wrong is said before Ray starts."""

import socket
from pathlib import Path
from typing import Any

import pytest

from serve.bundle import BaseSpec, Bundle
from serve.config.settings import Settings
from serve.errors import UserError
from serve.graph.preflight import check
from tests.serve.gateway.fakes import ensemble
from tests.serve.tiny import causal_base, lora


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    base = causal_base(root / "base")
    made = Bundle.create(root / "bundle", BaseSpec(path=str(base)))
    member = {
        "name": "a",
        "adapters": [made.add_adapter("a", lora(base, root / "a", seed=1, rank=8))],
    }
    made.write_ensemble(ensemble().model_validate(ensemble().model_dump() | {"members": [member]}))
    return made.path


def settings(bundle: Path, store: Path, **more: Any) -> Settings:
    return Settings.load({"bundles": [bundle], "store": store, "port": free_port(), **more})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_sound_server_passes(bundle: Path, tmp_path: Path) -> None:
    check(settings(bundle, tmp_path / "store"))
    assert (tmp_path / "store" / "logs").is_dir()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bundles": ["/nope"]}, r"There is no folder /nope\."),
        ({"bundles": ["/usr"]}, r"/usr is not a bundle"),
        ({"adapter_roots": ["/nope"]}, r"--adapter-root: there is no folder /nope\."),
        ({"engine": {"max_model_length": 8}}, "did you mean 'max_model_len'"),
        ({"engine": {"max_model_len": "8"}}, "must be a whole number"),
        ({"pinned": ["tone"]}, "no ensemble 'tone' to be pinned; there are intents"),
        ({"log_dir": "/proc/nope"}, "--log-dir: the folder /proc/nope cannot be made"),
        ({"engine": {"max_lora_rank": 1}}, "rank"),
    ],
)
def test_what_is_wrong_is_said(
    bundle: Path, tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        check(settings(bundle, tmp_path / "store", **wrong))


def test_a_port_that_is_taken(bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            check(settings(bundle, tmp_path / "store", port=port))


def test_what_the_store_has_is_served_whatever_became_of_the_bundles_files(
    bundle: Path, tmp_path: Path
) -> None:
    (weights,) = bundle.glob("adapters/a/*/adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1])
    try:
        with pytest.raises(UserError, match="digest"):
            check(settings(bundle, tmp_path / "new"))
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "choir.db").touch()
        check(settings(bundle, tmp_path / "old"))
    finally:
        weights.write_bytes(whole)
