"""Wrong and missing keys: the message says where the key is and what was expected."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import recipe_content
from tests.training.recipe.conftest import changed
from training.recipe import (
    RecipeError,
    parse_recipe,
)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "ensembles.0.members.0.rankk",
            3,
            "ensembles.0.members.0.rankk: unknown key, did you mean rank?",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"learning_rate": {"log": [0, 1]}}},
            "search.space.learning_rate: a log range starts above 0, not at 0",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 9000]}},
            "search: rank 9000 cannot be tried: rank Input should be less than or equal to 512",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": {"uniform": [4, 8]}}},
            "search: rank 5.5276 cannot be tried: rank Input should be a valid integer",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"virtual_tokens": [4, 8]}},
            "search: virtual_tokens is not a key of the kind lora, which has alpha, batch_size",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": {"log": [1, 2], "uniform": [1, 2]}}},
            "exactly one of log, uniform and integer (given: log, uniform)",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 8]}, "metric": "bleu"},
            "search: trials of classification are judged by log_loss, accuracy, macro_f1, ece, not by bleu",
        ),
        (
            "ensembles.0.members.0.search",
            {"space": {"rank": [4, 8]}, "trails": 3},
            "search.trails: unknown key, did you mean trials?",
        ),
        (
            "ensembles.0.members.0.rank",
            "many",
            "ensembles.0.members.0.rank: .*integer.* (got 'many')",
        ),
        (
            "ensembles.0.members.0.kind",
            "prefix_tuning",
            "ensembles.0.members.0: kind must be one of lora, alora, prefix, prompt, p_tuning",
        ),
        (
            "ensembles.0.members.0",
            {
                "name": "a",
                "search": {"space": {"rank": [4, 8]}},
                "stages": [{"kind": "lora"}, {"kind": "prompt"}],
            },
            "search is for members of one stage",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "kind": "prefix", "rank": 8},
            "ensembles.0.members.0.rank: this key is for the kind lora, alora, not for prefix",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "kind": "prefix", "projection": 8, "init": "x"},
            "init and projection exclude each other",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "stages": [{"kind": "prompt"}, {"kind": "lora"}]},
            "the stages prompt, lora cannot be one member",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "stages": [{"rank": 4, "virtual_tokens": 4}]},
            "ensembles.0.members.0.stages.0.virtual_tokens: this key is for the kind prefix",
        ),
        (
            "ensembles.0.members.0",
            {"name": "a", "rank": 4, "stages": [{"kind": "lora"}]},
            "rank belongs in one of the stages",
        ),
        (
            "ensembles.0.defaults.rankk",
            3,
            "defaults has the unknown key 'rankk', did you mean rank?",
        ),
        ("ensembles.0.label", None, "classification ensemble names its `label`"),
        ("ensembles.0.template", "no place", "template must contain {text}"),
        ("ensembles.0.members", [], "ensembles.0.members: .*at least 1"),
        ("ensembles.0.members", [{"name": "a"}, {"name": "a"}], "members need different names"),
        ("ensembles.0.candidates", [{"name": "x", "member": "z"}], "unknown member 'z'"),
        (
            "ensembles.0.members.1.name",
            "a" * 57,
            f"its adapter would be called topics-{'a' * 57}, which has 64 characters",
        ),
        (
            "ensembles.0.members.1",
            {"name": "a" * 50, "stages": [{"kind": "lora"}, {"kind": "prompt"}]},
            f"topics-{'a' * 50}-prompt, which has 64 characters",
        ),
        ("ensembles.0.task", "ranking", "ensembles.0.task: .*'classification', .* or 'generation'"),
        (
            "ensembles.1.fusion",
            {"method": "gate"},
            "generation is fused by average, product, vote, mbr, stack, not by gate",
        ),
        (
            "ensembles.1.fusion",
            {"candidates": ["stack", "vote"]},
            "`candidates` of generation may name stack, which is then fitted too, and not vote",
        ),
        (
            "ensembles.0.fusion",
            {"method": "average", "top_k": 1},
            "`top_k` says how many members a gate asks",
        ),
        (
            "base.path",
            "model",
            "exactly one of path, id, package and scratch (given: path, scratch)",
        ),
        ("base.scratch.heads", 3, "hidden / heads must be one of"),
        ("base.scratch.documents", ["nothing"], "must name columns in braces"),
        ("base", {"kind": "causal", "id": "org/model"}, "id and revision belong together"),
        ("base", {"kind": "encoder", "path": "x"}, "generation needs a causal base"),
        ("data.example", {}, "give either train"),
        ("data.train", {"pth": "a.csv"}, "data.train.pth: unknown key, did you mean path?"),
        ("data.train", [{"path": "a.csv", "url": "s3://b/c"}], "exactly one of path, url, hub and"),
        ("data.train", {"hub": "org/rows"}, "a data set without a revision is not reproducible"),
        ("data.clean", {"duplicate": "near"}, "unknown key, did you mean duplicates?"),
        ("data.clean", {"duplicates": "all"}, "data.clean.duplicates: .*'exact', 'near' or 'keep'"),
        ("data.split", {"by": "group"}, "column goes with `by: group`"),
        ("data.split", {"test_fraction": 0.1}, "give either test (files) or split.test_fraction"),
        (
            "data.annotate",
            {"label": "label", "unlabelled": "x.csv", "rules": [{"label": "a", "pattern": "("}]},
            "the pattern '(' is not a regular expression",
        ),
        ("data.annotate", {"label": "label"}, "give unlabelled rows and who labels them"),
        (
            "data.train",
            "${CHOIR_NO_SUCH}/a.csv",
            "the environment variable CHOIR_NO_SUCH is not set",
        ),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(RecipeError, match=pattern):
        parse_recipe(changed(path, value), folder=tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = recipe_content()
    del content["ensembles"][0]["members"][0]["name"]
    with pytest.raises(RecipeError, match=r"ensembles.0.members.0.name: this key is required"):
        parse_recipe(content, folder=tmp_path)
