"""The logits processor that fuses the rows of each group and gives all of them the same token.

It is for vLLM's V1 model runner, where a row is an index of the persistent batch. It runs after vLLM's own masks, bad
words, `min_tokens` and `logit_bias`, and before vLLM's penalties and sampling, which would come too late for a group.
So a group's requests carry neutral penalties and temperature 0, and the sibling spec carries the real values. The
processor leaves one token unmasked in each row of a group. It does not touch requests outside groups.

Fusing needs several float32 copies of the members' rows. vLLM measures the memory of a step before there are any
groups, and gives nearly all the rest to its KV cache. So the processor fuses a few groups at a time, in memory of a
fixed size that it reserves before vLLM measures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from serve.engine.lockstep.logprob_rows import LogprobRow, logprob_rows
from serve.engine.lockstep.sibling_spec import SiblingSpec
from serve.engine.soft.adapter import SoftAdapter
from serve.fusion.tokens.penalties import penalise
from serve.fusion.tokens.step import fuse_step, likeliest
from serve.manifest import TokenMethod

SLICE_BYTES = 16 << 20
"""The size of one float32 copy of the rows that are fused at once. A single group may take more."""
COPIES = 6
"""The most of these copies that a step holds at once."""


@dataclass(frozen=True)
class Row:
    """One sibling in the batch."""

    spec: SiblingSpec
    prompt: Sequence[int]
    """Without virtual tokens."""
    output: Sequence[int]
    """Its tokens so far; vLLM keeps the list up to date."""


@dataclass(frozen=True)
class Block:
    """G groups of one size N and one method, fused as one tensor."""

    method: TokenMethod
    indices: list[list[int]]
    """[G][N] rows of the batch, members by rank."""
    rows: torch.Tensor
    """[G, N] the same rows, on the device."""
    span: slice | None
    """The same rows as a slice, if they are neighbours in this order. They mostly are, and then nothing is copied."""
    siblings: list[list[Row]]
    """[G][N]"""
    weights: torch.Tensor
    """[G, N]"""
    plausibility: torch.Tensor
    """[G]"""
    plain: bool
    """Whether every group wants only the likeliest token of a mixture."""

    def members_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the members' rows [G, N, V]: a view of `logits` if the rows are neighbours, else a copy."""
        if self.span is None:
            return logits[self.rows]
        return logits[self.span].unflatten(0, self.rows.shape)

    def force(self, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """Masks all tokens in the members' rows but their group's ([G])."""
        if self.span is None:
            logits[self.rows] = float("-inf")
            logits[self.rows, tokens.unsqueeze(1)] = 0.0
        else:
            members = self.members_of(logits)
            members.fill_(float("-inf"))
            members.scatter_(2, tokens.view(-1, 1, 1).expand(*self.rows.shape, 1), 0.0)


def _plain(spec: SiblingSpec) -> bool:
    return (
        spec.fusion.method != "product"
        and spec.sampling.greedy
        and spec.penalties.neutral
        and spec.columns is None
    )


class LockstepProcessor(LogitsProcessor):
    """Implements vLLM's `LogitsProcessor`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._row_bytes = 4 * vllm_config.model_config.get_vocab_size()
        self._rows: dict[int, Row] = {}
        self._blocks: list[Block] = []
        self._reserved = self._reserve()
        self.logprob_rows: list[LogprobRow] = []
        """The log-probabilities of the last step's groups."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Takes note of the rows in the batch.

        Leaves out a group whose siblings are not all in the batch: it is still reading its prompts, and vLLM discards
        its samples."""
        self.logprob_rows = []
        if not process_dict_updates(self._rows, batch_update, _row_of):
            return
        groups: dict[str, list[tuple[int, Row]]] = {}
        for index, row in self._rows.items():
            groups.setdefault(row.spec.group, []).append((index, row))
        alike: dict[tuple[int, TokenMethod], list[list[tuple[int, Row]]]] = {}
        for siblings in groups.values():
            spec = siblings[0][1].spec
            if len(siblings) == spec.size:
                siblings.sort(key=lambda each: each[1].spec.rank)
                alike.setdefault((spec.size, spec.fusion.method), []).append(siblings)
        self._blocks = [
            self._block(method, several[start : start + self._at_once(size)])
            for (size, method), several in alike.items()
            for start in range(0, len(several), self._at_once(size))
        ]

    def _at_once(self, members: int) -> int:
        """Returns how many groups of so many members are fused at once."""
        return max(1, int(SLICE_BYTES // (members * self._row_bytes)))

    def _reserve(self) -> torch.Tensor | None:
        """Returns memory that vLLM and PyTorch count as taken while nothing is fused; None on a CPU, where vLLM does
        not measure."""
        if self._device.type == "cpu":
            return None
        return torch.empty(COPIES * SLICE_BYTES, dtype=torch.uint8, device=self._device)

    def _block(self, method: TokenMethod, groups: list[list[tuple[int, Row]]]) -> Block:
        fusions = [siblings[0][1].spec.fusion for siblings in groups]
        indices = [[index for index, _ in siblings] for siblings in groups]
        flat = [index for group in indices for index in group]
        neighbours = range(flat[0], flat[0] + len(flat))
        return Block(
            method=method,
            indices=indices,
            rows=torch.tensor(indices, device=self._device),
            span=slice(neighbours.start, neighbours.stop) if flat == list(neighbours) else None,
            siblings=[[row for _, row in siblings] for siblings in groups],
            weights=torch.tensor(
                [fusion.weights for fusion in fusions], dtype=torch.float32, device=self._device
            ),
            plausibility=torch.tensor(
                [fusion.plausibility for fusion in fusions],
                dtype=torch.float32,
                device=self._device,
            ),
            plain=all(_plain(row.spec) for siblings in groups for _, row in siblings),
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self._blocks:
            with self.room():
                self._fuse(logits)
        return logits

    @contextmanager
    def room(self) -> Iterator[None]:
        """Gives the reserved memory to whoever fuses, meanwhile."""
        self._reserved = None
        yield
        self._reserved = self._reserve()

    def _fuse(self, logits: torch.Tensor) -> None:
        for block in self._blocks:
            members = block.members_of(logits)
            if block.plain:
                block.force(likeliest(members, block.weights), logits)
                continue
            for group, siblings in enumerate(block.siblings):
                for rank, row in enumerate(siblings):
                    if not row.spec.penalties.neutral:
                        members[group, rank] = penalise(
                            members[group, rank], row.prompt, row.output, row.spec.penalties
                        )
            leaders = [siblings[0] for siblings in block.siblings]
            step = fuse_step(
                members,
                block.weights,
                block.method,
                samplings=[leader.spec.sampling for leader in leaders],
                positions=[len(leader.output) for leader in leaders],
                plausibility=block.plausibility,
            )
            block.force(step.tokens, logits)
            first = [ranked[0] for ranked in block.indices]
            specs = [leader.spec for leader in leaders]
            self.logprob_rows += logprob_rows(step, list(zip(first, specs, strict=True)))


def _row_of(params: SamplingParams, prompt: list[int] | None, output: list[int]) -> Row | None:
    spec = SiblingSpec.of(params)
    if spec is None:
        return None
    soft = SoftAdapter.of(params)
    return Row(spec, (prompt or [])[soft.tokens if soft else 0 :], output)
