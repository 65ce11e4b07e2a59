"""The mapping of tokens and the keys of blocks, each alone and both together."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serve.prompting.invocation import Invocation

pytestmark = pytest.mark.engine

BLOCK = 8


@pytest.mark.parametrize(
    ("start", "computed", "scheduled", "sampled", "tokens", "positions"),
    [
        pytest.param(3, 0, 5, 1, [0, 0, 0, 7, 7], [7], id="in the middle of a step"),
        pytest.param(3, 2, 4, 1, [0, 7, 7, 7], [7], id="after a chunk"),
        pytest.param(3, 3, 2, 1, [7, 7], [7], id="from the first token on"),
        pytest.param(3, 9, 1, 1, [7], [7], id="while it writes"),
        pytest.param(9, 2, 4, 1, [0, 0, 0, 0], [0], id="a chunk before it"),
        pytest.param(1 << 30, 0, 3, 1, [0, 0, 0], [0], id="never"),
        pytest.param(0, 0, 3, 2, [7, 7, 7], [7, 7], id="a plain LoRA"),
    ],
)
def test_tokens_before_the_invocation_are_the_bases(
    start: int, computed: int, scheduled: int, sampled: int, tokens: list[int], positions: list[int]
) -> None:
    """Between a request of the base and one of another LoRA."""
    from serve.engine.shared_prompt.hooks import lora_rows

    found, at = lora_rows(
        np.array([0, 7, 2]),
        np.array([0, start, 0]),
        np.array([4, computed, 0]),
        np.array([2, scheduled, 3]),
        np.array([1, sampled, 1]),
    )
    assert found.tolist() == [0, 0, *tokens, 2, 2, 2]
    assert at.tolist() == [0, *positions, 2]


@pytest.fixture
def requests() -> Any:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    import serve.engine.vllm_hooks.scheduler  # installs the hooks
    from serve.engine.shared_prompt.activation import write_invocation

    assert serve.engine.vllm_hooks.scheduler
    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK, sha256)

    def make(prompt: list[int], lora: int | None, invocation: list[int] | None) -> list[Any]:
        params = SamplingParams(max_tokens=1)
        if invocation:
            write_invocation(params, Invocation(tuple(invocation), ""))
        adapter = LoRARequest(f"l{lora}", lora, "/nowhere") if lora else None
        request = Request("r", prompt, params, None, lora_request=adapter, block_hasher=hasher)
        return list(request.block_hashes)

    return make


@pytest.mark.parametrize("start", [0, 7, 8, 15, 16, 17])
def test_blocks_before_the_invocation_have_the_bases_keys(requests: Any, start: int) -> None:
    own = [90, 91]
    prompt = [*range(start), *own, *range(40, 64 - start)]
    base, one, two = (
        requests(prompt, None, None),
        requests(prompt, 1, own),
        requests(prompt, 2, own),
    )
    shared = start // BLOCK
    assert base[:shared] == one[:shared] == two[:shared]
    for theirs in (one, two):
        assert set(theirs[shared:]).isdisjoint(base)
    assert set(one[shared:]).isdisjoint(two)
    assert set(requests(prompt, 1, None)).isdisjoint(one[:shared])


@pytest.fixture
def uninstalled() -> Iterator[dict[tuple[Any, str], Any]]:
    """As if nothing had been installed; what was there comes back."""
    from vllm.v1.worker.gpu_input_batch import InputBatch

    from serve.engine.shared_prompt import hooks

    places = {(where, name): getattr(where, name) for where, name in hooks._PLACES}
    marked = InputBatch.__dict__.get(hooks._MARK)
    if marked:
        delattr(InputBatch, hooks._MARK)
    yield places
    for (where, name), value in places.items():
        setattr(where, name, value)
    if marked:
        setattr(InputBatch, hooks._MARK, True)


def test_all_or_nothing_is_installed(
    uninstalled: dict[tuple[Any, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys without the mapping would let an adapter write where the base reads; so whichever place is missing, nothing
    changes."""
    from serve.engine.shared_prompt import hooks

    for missing, name in uninstalled:
        with monkeypatch.context() as without:
            without.delattr(missing, name)
            with pytest.raises(RuntimeError, match=name):
                hooks.install()
        for (where, other), value in uninstalled.items():
            assert getattr(where, other) is value, other
    hooks.install()
    assert all(getattr(where, name) is not value for (where, name), value in uninstalled.items())
    once = [getattr(where, name) for where, name in uninstalled]
    hooks.install()
    assert [getattr(where, name) for where, name in uninstalled] == once
