"""Groups are fused in bounded memory, however many run, with the same tokens and log-probabilities."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor.interface import BatchUpdate

from serve.engine.lockstep import processor as module
from serve.engine.lockstep.logprobs import rewrite
from serve.engine.lockstep.processor import LockstepProcessor
from serve.engine.lockstep.sibling_spec import SiblingSpec, TokenFusion
from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling

VOCABULARY, GROUPS, MEMBERS = 5000, 24, 3
METHODS = ("average", "weighted_average", "product")


def spec(group: int, rank: int) -> SiblingSpec:
    method = METHODS[group % 3]
    reports = group % 4 == 0
    return SiblingSpec(
        group=f"g{group}",
        size=MEMBERS,
        rank=rank,
        fusion=TokenFusion(method, (0.5, 0.3, 0.2)),  # type: ignore[arg-type]
        sampling=Sampling(temperature=0.0 if group % 2 else 1.0, seed=group),
        penalties=Penalties(repetition=1.2 if group % 5 == 0 else 1.0),
        top=3 if reports and rank == 0 else None,
        report_members=reports,
    )


def batch() -> BatchUpdate:
    """Members of groups stand apart in the batch, as they do after others have ended."""
    added = []
    for group in range(GROUPS):
        for rank in range(MEMBERS):
            params = SamplingParams()
            spec(group, rank).write_to(params)
            index = rank * GROUPS + group if group % 3 == 0 else group * MEMBERS + rank
            added.append((index, params, [1, 2, 3], [group]))
    taken = [index for index, *_ in added]
    free = [index for index in range(GROUPS * MEMBERS) if index not in taken]
    seen: set[int] = set()
    unique = []
    for index, *rest in added:
        place = index if index not in seen else free.pop()
        seen.add(place)
        unique.append((place, *rest))
    return BatchUpdate(len(unique), [], unique, [])


def run(monkeypatch: pytest.MonkeyPatch, slice_bytes: int) -> tuple[Any, int]:
    """Returns the tokens and log-probabilities of a step, and the bytes of the largest tensor that it fused."""
    monkeypatch.setattr(module, "SLICE_BYTES", slice_bytes)
    largest = 0

    def measured(fuse: Any) -> Any:
        def call(logits: torch.Tensor, *args: Any, **options: Any) -> Any:
            nonlocal largest
            largest = max(largest, logits.numel() * 4)
            return fuse(logits, *args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, "fuse_step", measured(module.fuse_step))
        patch.setattr(module, "likeliest", measured(module.likeliest))
        config: Any = SimpleNamespace(
            model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY)
        )
        fused = LockstepProcessor(config, torch.device("cpu"), False)
        fused.update_state(batch())
        logits = torch.randn(
            GROUPS * MEMBERS, VOCABULARY, generator=torch.Generator().manual_seed(0)
        )
        chosen = fused.apply(logits * 3).argmax(dim=-1)
    tensors = LogprobsTensors(
        logprob_token_ids=torch.zeros(GROUPS * MEMBERS, 8, dtype=torch.int32),
        logprobs=torch.zeros(GROUPS * MEMBERS, 8),
        selected_token_ranks=torch.zeros(GROUPS * MEMBERS, dtype=torch.int32),
    )
    rewrite(tensors, fused)
    held = sum(row.values.numel() + row.tokens.numel() for row in fused.logprob_rows)
    assert 0 < held < VOCABULARY, "nothing as large as a distribution outlives the step"
    return (chosen, tensors), largest


def test_groups_are_fused_in_slices_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    group = MEMBERS * VOCABULARY * 4
    (tokens, tensors), whole = run(monkeypatch, 1 << 30)
    assert whole > 4 * group
    for groups in (1, 2, 5):
        (sliced, sliced_tensors), largest = run(monkeypatch, groups * group)
        assert largest <= groups * group
        assert torch.equal(sliced, tokens)
        for mine, theirs in zip(sliced_tensors, tensors, strict=True):
            if isinstance(mine, torch.Tensor):
                torch.testing.assert_close(mine, theirs)


def test_a_group_larger_than_a_slice_is_fused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, largest = run(monkeypatch, 1)
    assert largest == MEMBERS * VOCABULARY * 4
