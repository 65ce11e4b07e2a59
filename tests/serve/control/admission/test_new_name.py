"""Names that are made at run time: which base they are served over."""

from pathlib import Path
from typing import Literal

import pytest

from serve.control.admission.new_name import empty_version
from serve.control.admission.pools import EngineLimits, Pool, Pools
from serve.errors import RefusedError
from tests.serve.fakes import make_bundle


def pool(folder: Path, name: str, kind: Literal["causal", "encoder"]) -> Pool:
    return Pool(name, [make_bundle(folder / name, name)], EngineLimits(1, 8, kind))


def test_a_new_name_belongs_to_the_one_base_that_writes_texts(tmp_path: Path) -> None:
    encoder, causal = pool(tmp_path, "topics", "encoder"), pool(tmp_path, "replies", "causal")
    pools = Pools([encoder, causal])
    version = empty_version("poems", pools)
    assert version.ensemble.task == "generation"
    assert pools.name_of("poems") == "replies"
    assert version.source == f"base:{tmp_path / 'replies'}"


def test_without_such_a_base_or_with_several_it_is_refused(tmp_path: Path) -> None:
    encoder, causal = pool(tmp_path, "topics", "encoder"), pool(tmp_path, "replies", "causal")
    other = pool(tmp_path, "rhymes", "causal")
    with pytest.raises(RefusedError, match="no base of this server writes texts"):
        empty_version("poems", Pools([encoder]))
    with pytest.raises(RefusedError, match="2 bases that write texts, replies, rhymes"):
        empty_version("poems", Pools([causal, other]))
