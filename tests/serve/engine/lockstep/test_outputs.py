"""A client hears a group as one request."""

from typing import Any

import pytest

pytestmark = pytest.mark.engine


def outputs(*each: tuple[str, list[int], str | None]) -> Any:
    """One client's outputs of a step: request id, tokens, and why the request ended."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    return EngineCoreOutputs(
        outputs=[
            EngineCoreOutput(
                request_id=id_,
                new_token_ids=tokens,
                finish_reason=FinishReason[reason] if reason else None,
            )
            for id_, tokens, reason in each
        ]
    )


def merged(*each: tuple[str, list[int], str | None]) -> tuple[Any, Any]:
    """What is merged of a group whose requests begin with g, and the outputs that are left."""
    from serve.engine.lockstep.group import Group
    from serve.engine.lockstep.outputs import merge_outputs

    group = Group("g", 2, 0, 0.0, leader="g-0")
    group.stalls["kv_cache"] = 3
    group.computed = 7
    step = outputs(*each)
    found = merge_outputs([step], lambda id_: group if id_.startswith("g") else None)
    return found, step.outputs


def test_only_the_leaders_tokens_and_single_requests_are_passed_on() -> None:
    found, left = merged(("g-1", [5], None), ("single", [9], None), ("g-0", [5], None))
    assert [(output.request_id, output.new_token_ids) for output in left] == [
        ("single", [9]),
        ("g-0", [5]),
    ]
    assert (found.ended, found.diverged) == ([], [])


def test_the_last_outputs_of_all_siblings_are_passed_on_and_the_leaders_has_the_account() -> None:
    found, left = merged(("g-0", [5], "STOP"), ("g-1", [5], "LENGTH"))
    assert [output.kv_transfer_params for output in left] == [
        {"choir_group": {"stalls": {"kv_cache": 3}, "error": None}, "choir_computed": 7},
        None,
    ]
    ((group, reason),) = found.ended
    assert (group.key, str(reason)) == ("g", "stop")


def test_different_tokens_of_siblings_are_reported() -> None:
    found, _ = merged(("g-0", [5], None), ("g-1", [6], None))
    ((group, tokens),) = found.diverged
    assert (group.key, tokens) == ("g", [[5], [6]])
