"""Measures what the engine has room for: sequences, adapters, tokens of a step, blocks of the KV cache, and images.

Which versions are loaded at all is another question (`serve/protocol/capacity.py`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from serve.engine.lockstep.group import Group
from serve.engine.shared_prompt.blocks import brought_by_others
from serve.engine.soft.adapter import SoftAdapter

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Images:
    """How many tokens of images vLLM has to keep, so that all members of some groups come to their last token."""

    held: Mapping[str, int]
    """Images in which a prompt ends, by vLLM's key. They are kept until all siblings have come so far."""
    passing: int
    """The largest other one, which is kept until its member has read it."""

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "Images":
        held: dict[str, int] = {}
        passing = 0
        for request in (each for group in groups for each in group.members.values()):
            for image in request.mm_features or ():
                place = image.mm_position
                end, tokens = place.offset + place.length, place.get_num_embeds()
                if end <= request.num_computed_tokens:
                    continue  # it has been read
                if place.offset < request.num_tokens <= end:
                    held[image.identifier] = tokens
                else:
                    passing = max(passing, tokens)
        return cls(held, passing)

    def beside(self, others: "Images") -> "Images":
        return Images({**self.held, **others.held}, max(self.passing, others.passing))

    @property
    def most(self) -> int:
        """The tokens at the fullest moment."""
        return sum(self.held.values()) + self.passing


@dataclass
class Capacity:
    """What is free for groups that wait."""

    sequences: int
    adapters: set[int]
    """vLLM's ids of the adapters in use."""
    max_adapters: int
    blocks: int
    tokens: int
    """Free tokens of this step."""
    chunk: int
    """The longest prompt that vLLM takes in one step."""
    needs: Callable[[Group], int]
    """Returns the blocks that a group's prompts take."""
    lengths: Callable[[Group], list[int]]
    """Returns the tokens that each member computes."""
    images: Images
    """What the groups that are admitted keep of images."""
    image_room: int
    """How many tokens of images vLLM keeps at once."""

    def refuses(self, group: Group) -> str | None:
        """Returns what the group has to wait for; None if there is room."""
        if group.size > self.sequences:
            return "slots"
        if len(self.adapters | group.adapters) > self.max_adapters:
            return "adapters"
        if self.needs(group) > self.blocks:
            return "kv_cache"
        if self.images.beside(Images.of([group])).most > self.image_room:
            return "images"
        return None

    def take(self, group: Group) -> bool:
        """Takes what the group needs. Returns whether all its prompts fit into this step."""
        lengths = self.lengths(group)
        tokens = sum(lengths)
        fits = tokens <= self.tokens and max(lengths) <= self.chunk
        self.sequences -= group.size
        self.adapters |= group.adapters
        self.blocks -= self.needs(group)
        self.tokens -= tokens
        self.images = self.images.beside(Images.of([group]))
        return fits


def to_compute(request: Request, brought: int = 0) -> int:
    """Returns the tokens that a queued request has to compute: all but those of a prefix, whose keys and values are
    loaded, and but the first `brought` ones, which a sibling computes."""
    soft = SoftAdapter.of(request.sampling_params)
    return int(request.num_tokens) - max(soft.preloaded if soft else 0, brought)


class Room(_Base):
    """The part of the group scheduler that measures. It reads vLLM's scheduler and changes nothing."""

    _live_adapters: set[int]

    @property
    def _token_budget(self) -> int:
        if self._pause_state == PauseState.PAUSED_ALL:
            return 0
        return int(min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens))

    @property
    def _vacant_blocks(self) -> int:
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    @staticmethod
    def _left(request: Request) -> int:
        """Returns the tokens that are not computed yet, including those that the step in flight will sample."""
        return int(
            request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        )

    @staticmethod
    def _at_its_end(request: Request) -> bool:
        """Returns whether the step in flight reaches `max_tokens`, as vLLM's asynchronous scheduler computes it."""
        return bool(
            request.num_output_placeholders > 0
            and request.num_computed_tokens + 2 - request.num_output_placeholders
            >= request.num_prompt_tokens + request.max_tokens
        )

    def _blocks_for(self, request: Request, tokens: int) -> int:
        """Returns the blocks that the request still needs to hold so many tokens, without cache hits."""
        tokens = min(tokens, self.max_model_len)
        return int(
            self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=tokens,
                new_computed_blocks=self.kv_cache_manager.empty_kv_cache_blocks.blocks,
                num_encoder_tokens=0,
                total_computed_tokens=request.num_computed_tokens,
                num_local_computed_tokens=request.num_computed_tokens,
                num_tokens_main_model=tokens,
                apply_admission_cap=True,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )
        )

    def _brought(self, group: Group) -> dict[str, int]:
        """Returns, for each waiting member, the blocks of its prompt that a sibling brings: they count once."""
        if len(self.kv_cache_config.kv_cache_groups) > 1:
            return {}  # blocks of several sizes have hashes of their own
        ordered = sorted(group.requests, key=to_compute, reverse=True)
        brought = brought_by_others(ordered, self.block_size)
        waiting = [r for r in ordered if r.status != RequestStatus.RUNNING]
        return {r.request_id: brought[r.request_id] for r in waiting}

    def _lengths(self, group: Group) -> list[int]:
        brought = self._brought(group)
        return [
            to_compute(r, brought.get(r.request_id, 0) * self.block_size) for r in group.requests
        ]

    def _blocks_for_prompts(self, group: Group) -> int:
        blocks = sum(self._blocks_for(r, r.num_tokens + 1) for r in group.members.values())
        return blocks - sum(self._brought(group).values())

    def _blocks_for_next(self, groups: Iterable[Group]) -> int:
        """Returns the blocks that the next token of every member takes."""
        requests = [request for group in groups for request in group.members.values()]
        if len(requests) <= self._vacant_blocks:
            return 0  # a token takes at most one block
        return sum(self._blocks_for(r, r.num_computed_tokens + 1) for r in requests)

    def _note_adapters(self, admitted: Iterable[Group]) -> None:
        self._live_adapters = {
            request.lora_request.lora_int_id for request in self.running if request.lora_request
        }.union(*(group.adapters for group in admitted))

    def _measure(self, admitted: list[Group]) -> Capacity:
        queued = [
            request
            for group in admitted
            for request in group.members.values()
            if request.status != RequestStatus.RUNNING
        ]
        watermark = self.kv_cache_manager.watermark_blocks
        reserved = sum(self._blocks_for_prompts(group) for group in admitted)
        return Capacity(
            sequences=self.max_num_active_reqs
            - len(self.running)
            - self.num_waiting_for_streaming_input
            - len(queued),
            adapters=set(self._live_adapters),
            max_adapters=self._max_adapters,
            blocks=self._vacant_blocks - reserved - watermark,
            tokens=self._token_budget
            - sum(self._left(request) for request in self.running)
            - sum(to_compute(request) for request in queued),
            chunk=self.scheduler_config.long_prefill_token_threshold or UNLIMITED,
            needs=self._blocks_for_prompts,
            lengths=self._lengths,
            images=Images.of(admitted),
            image_room=self._image_room,
        )

    @property
    def _max_adapters(self) -> int:
        return int(self.lora_config.max_loras) if self.lora_config else UNLIMITED

    @property
    def _image_room(self) -> int:
        if self.is_encoder_decoder:
            return UNLIMITED  # what it hears is no part of the prompt
        return int(self.encoder_cache_manager.cache_size)

    def _never_fits(self, group: Group) -> str | None:
        """Returns why the group could not run even alone, in a sentence for the client; None if it could."""
        sequences = min(self.max_num_active_reqs, self.max_num_scheduled_tokens)
        if group.size > sequences:
            return f"The ensemble has {group.size} members, and the engine runs {sequences} sequences at once."
        if len(group.adapters) > self._max_adapters:
            most = self._max_adapters
            return f"The ensemble has {len(group.adapters)} adapters, and the engine holds {most} at once."
        images = Images.of([group]).most
        if images > self._image_room:
            return (
                f"The prompts of {group.size} members end in images of {images} tokens together, and the engine keeps "
                f"{self._image_room} at once: let the prompt go on behind the image, or start with a larger "
                f"max_num_batched_tokens (--engine '{{\"max_num_batched_tokens\": {images}}}')."
            )
        total = self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        total -= self.kv_cache_manager.watermark_blocks
        need = sum(
            self._blocks_for(r, r.num_prompt_tokens + r.max_tokens) for r in group.members.values()
        )
        need -= sum(self._brought(group).values())
        if need > total:
            return (
                f"The prompts and answers of {group.size} members need {need} blocks of the KV cache, and the engine "
                f"has {total}: shorten the prompt or lower max_tokens."
            )
        return None
