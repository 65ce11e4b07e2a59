"""Fused log-probabilities of a prompt whose members come in any order and in any chunks, without an engine."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from serve.engine.lockstep import prompt_rows
from serve.engine.lockstep.processor import LockstepProcessor
from serve.engine.lockstep.sibling_spec import SiblingSpec, TokenFusion
from serve.engine.soft.adapter import SoftAdapter
from serve.fusion.tokens.penalties import Penalties
from serve.fusion.tokens.sampling import Sampling
from tests.serve.engine.fused import averaged, multiplied

VOCABULARY, WIDTH = 40, 6
HEAD = torch.randn(WIDTH, VOCABULARY, generator=torch.Generator().manual_seed(1))


def gathered(scores: torch.Tensor, top: int, targets: torch.Tensor) -> LogprobsTensors:
    """As vLLM's sampler does: the target's own, and then the likeliest."""
    own = scores.gather(1, targets.unsqueeze(1))
    best = scores.topk(top, dim=1)
    ids = torch.cat([targets.unsqueeze(1), best.indices], dim=1)
    return LogprobsTensors(ids, torch.cat([own, best.values], dim=1), (scores >= own).sum(dim=1))


class Runner:
    """The parts of vLLM's model runner that the log-probabilities of prompts need, and a model whose hidden states are
    given."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.lora_config: Any = None
        self.max_num_reqs = 4
        self.model = SimpleNamespace(compute_logits=lambda hidden: hidden @ HEAD)
        self.sampler = SimpleNamespace(
            compute_logprobs=lambda logits: logits.log_softmax(-1), gather_logprobs=gathered
        )
        processor = LockstepProcessor.__new__(LockstepProcessor)
        processor._device, processor._reserved = self.device, None
        self.input_batch = SimpleNamespace(
            req_id_to_index={},
            vocab_size=VOCABULARY,
            logitsprocs=SimpleNamespace(non_argmax_invariant=[processor]),
        )
        self.requests: dict[str, Any] = {}
        self.num_prompt_logprobs: dict[str, int] = {}
        self.alone: list[list[str]] = []
        """The requests that each step left to vLLM."""

    def add(self, prompt: list[int], fusion: TokenFusion, virtual: list[int], top: int) -> None:
        for rank, count in enumerate(virtual):
            params = SamplingParams(prompt_logprobs=top)
            spec = SiblingSpec("g", len(virtual), rank, fusion, Sampling(), Penalties())
            spec.write_to(params)
            if count:
                SoftAdapter("prompt", "sha256:x", count).write_to(params)
            ids = [0] * count + prompt
            self.requests[f"g-{rank}"] = SimpleNamespace(
                sampling_params=params,
                prompt_token_ids=ids,
                num_prompt_tokens=len(ids),
                num_computed_tokens=0,
                output_token_ids=[],
            )
            self.num_prompt_logprobs[f"g-{rank}"] = top

    def step(self, scheduled: dict[str, int], hidden: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Computes some tokens of some requests, and samples where all are computed. Returns what is reported."""
        ids = list(scheduled)
        random.Random(len(self.alone)).shuffle(ids)
        self.input_batch.req_id_to_index = {id_: row for row, id_ in enumerate(ids)}
        starts = np.cumsum([0, *(scheduled[id_] for id_ in ids)])
        self.query_start_loc = SimpleNamespace(np=starts)
        rows, discard = [], []
        for id_ in ids:
            state = self.requests[id_]
            end = state.num_computed_tokens + scheduled[id_]
            rows.append(hidden[id_][state.num_computed_tokens : end])
            samples = end == state.num_prompt_tokens + len(state.output_token_ids)
            discard.append(not samples)
            if samples:
                state.output_token_ids.append(1)
        self.discard_request_mask = SimpleNamespace(np=np.array(discard))
        found: dict[str, Any] = GPUModelRunner._get_prompt_logprobs_dict(
            self, torch.cat(rows), scheduled
        )
        for id_ in ids:
            self.requests[id_].num_computed_tokens += scheduled[id_]
        return found

    def restart(self) -> None:
        """Preempts the group: it begins again, and keeps what it has written."""
        for state in self.requests.values():
            state.num_computed_tokens = 0


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    found = Runner()

    def of_requests(self: Any, hidden: torch.Tensor, scheduled: Any) -> dict[str, Any]:
        found.alone.append(list(self.num_prompt_logprobs))
        return dict.fromkeys(self.num_prompt_logprobs)

    monkeypatch.setattr(GPUModelRunner, "_get_prompt_logprobs_dict", of_requests)
    prompt_rows.install()
    return found


def states(virtual: list[int], length: int, seed: int) -> dict[str, torch.Tensor]:
    """The hidden states of each member at every position, with room for what it writes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"g-{rank}": torch.randn(count + length + 4, WIDTH, generator=generator)
        for rank, count in enumerate(virtual)
    }


def check(tensors: Any, hidden: Any, virtual: list[int], prompt: list[int], merge: Any) -> None:
    each = np.stack(
        [
            (hidden[f"g-{rank}"][count : count + len(prompt) - 1] @ HEAD)
            .double()
            .log_softmax(-1)
            .numpy()
            for rank, count in enumerate(virtual)
        ]
    ).reshape(len(virtual), -1, VOCABULARY)
    assert len(tensors.logprobs) == len(prompt) - 1
    for place, token in enumerate(prompt[1:]):
        fused = merge(each[:, place])
        best = np.sort(fused)[::-1][:2]
        np.testing.assert_allclose(tensors.logprobs[place], [fused[token], *best], atol=1e-5)
        assert tensors.logprob_token_ids[place][0] == token
        assert tensors.selected_token_ranks[place] == (fused >= fused[token] - 1e-9).sum()


WEIGHTS = [0.5, 0.2, 0.3]
FUSIONS = [
    (TokenFusion("weighted_average", tuple(WEIGHTS)), averaged(WEIGHTS)),
    (TokenFusion("product", (1.0, 0.6, -0.7)), multiplied([1.0, 0.6, -0.7])),
]


@pytest.mark.parametrize("fusion", FUSIONS, ids=["average", "product"])
@pytest.mark.parametrize("seed", range(6))
def test_chunks_of_any_size_in_any_order(
    runner: Runner, fusion: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members with different numbers of virtual tokens read in turns; their last token comes in one step."""
    if seed % 2:
        monkeypatch.setattr(prompt_rows, "SLICE_BYTES", 1)  # one position at a time
    rng = random.Random(seed)
    virtual, prompt = [0, 5, 11], [rng.randrange(VOCABULARY) for _ in range(rng.choice([1, 2, 17]))]
    hidden = states(virtual, len(prompt), seed)
    runner.add(prompt, fusion[0], virtual, top=2)
    runner.num_prompt_logprobs["other"] = 3
    runner.requests["other"] = SimpleNamespace(sampling_params=SamplingParams(prompt_logprobs=3))
    while True:
        left = {
            id_: state.num_prompt_tokens - state.num_computed_tokens
            for id_, state in runner.requests.items()
            if id_ != "other"
        }
        if set(left.values()) == {1}:
            break
        ready = [id_ for id_, count in left.items() if count > 1]
        chosen = rng.sample(ready, rng.randint(1, len(ready)))
        found = runner.step({id_: rng.randint(1, left[id_] - 1) for id_ in chosen}, hidden)
        assert found == {"other": None}
    found = runner.step(dict.fromkeys(left, 1), hidden)
    check(found.pop("g-0"), hidden, virtual, prompt, fusion[1])
    assert found == {"other": None}
    assert runner.step(dict.fromkeys(left, 1), hidden) == {"other": None}
    assert runner.num_prompt_logprobs == {"other": 3}
    assert all(each == ["other"] for each in runner.alone)


def test_a_group_that_begins_again_tells_once(runner: Runner) -> None:
    """Its first answer was dropped with the step that was in flight; the second one arrived."""
    fusion, merge = FUSIONS[0]
    virtual, prompt = [0, 0, 3], [3, 1, 4, 1, 5]
    hidden = states(virtual, len(prompt), 9)
    runner.add(prompt, fusion, virtual, top=2)
    whole = {id_: state.num_prompt_tokens for id_, state in runner.requests.items()}

    half = {"g-0": 5, "g-1": 5, "g-2": 4}
    assert runner.step(half, hidden) == {}, "one of them is not done, so the step was split"
    for state in runner.requests.values():
        state.output_token_ids.clear()  # the scheduler drops it
    runner.restart()
    dropped = runner.step(whole, hidden)
    check(dropped["g-0"], hidden, virtual, prompt, merge)
    for state in runner.requests.values():
        state.output_token_ids.clear()
    runner.restart()
    told = runner.step(whole, hidden)
    check(told["g-0"], hidden, virtual, prompt, merge)

    runner.restart()  # with one token written, which is read again
    assert runner.step({id_: count - 1 for id_, count in whole.items()}, hidden) == {}
    assert runner.step(dict.fromkeys(whole, 1), hidden) == {}, "these are its prompts' last tokens"
    assert runner.step(dict.fromkeys(whole, 1), hidden) == {}
    assert runner.num_prompt_logprobs == {}
