"""Merges the outputs of siblings, so that a client hears a group as one request."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request

from serve.engine.lockstep.group import Group


@dataclass(frozen=True)
class Merged:
    """What the outputs of one step say about the groups."""

    ended: list[tuple[Group, FinishReason]]
    """Groups of which a member has ended, with the reason of the first one."""
    diverged: list[tuple[Group, list[list[int]]]]
    """Groups whose members got different tokens in this step, with each member's tokens."""


def merge_outputs(
    outputs: Iterable[EngineCoreOutputs], group_of: Callable[[str], Group | None]
) -> Merged:
    """Removes the followers' outputs from `outputs`, except their last ones, and gives the leader's last output the
    group's account.

    `group_of`: the group of a request id, also of a request that ended in this step; None if it has none."""
    tokens: dict[str, list[list[int]]] = {}
    groups: dict[str, Group] = {}
    reasons: dict[str, FinishReason] = {}
    for of_client in outputs:
        kept = []
        for output in of_client.outputs:
            group = group_of(output.request_id)
            if group is not None:
                groups[group.key] = group
                tokens.setdefault(group.key, []).append(list(output.new_token_ids))
                leads = output.request_id == group.leader
                if output.finish_reason is not None:
                    reasons.setdefault(group.key, output.finish_reason)
                    if leads:
                        output.kv_transfer_params = group.account()
                elif not leads:
                    continue
            kept.append(output)
        of_client.outputs = kept
    return Merged(
        ended=[(groups[key], reason) for key, reason in reasons.items()],
        diverged=[
            (groups[key], each)
            for key, each in tokens.items()
            if any(own != each[0] for own in each)
        ],
    )


def last_output(request: Request, group: Group) -> EngineCoreOutput:
    """Returns the last output of a sibling that ends without a token of its own."""
    output = EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=request.get_finished_reason(),
        events=request.take_events(),
    )
    if request.request_id == group.leader:
        output.kv_transfer_params = group.account()
    return output
