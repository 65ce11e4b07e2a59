"""What serving takes and refuses of PEFT's sequence classifiers, on folders that PEFT wrote."""

from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from serve.adapter import AdapterError, has_head, inspect_adapter
from tests.serve.conftest import AdapterFolder

SCORE = "base_model.model.score.weight"


def classifier(base: Path, folder: Path, *targets: str) -> AdapterFolder:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=list(targets))
    get_peft_model(model, config).save_pretrained(folder)
    return AdapterFolder(folder)


@pytest.fixture
def adapter(causal_base: Path, tmp_path: Path) -> AdapterFolder:
    return classifier(causal_base, tmp_path / "adapter", "q_proj", "down_proj")


def test_a_causal_models_score_is_the_adapters_head(causal_base, adapter):
    info = inspect_adapter(adapter.path, base=causal_base, base_kind="encoder", head_rows=3)
    assert info.head is not None
    assert (info.head.labels, info.head.hidden, info.head.normalize) == (3, 16, False)
    assert has_head(adapter.path)
    assert all(".score" not in module for module in info.target_modules)


def test_a_score_that_does_not_fit_is_refused(causal_base, adapter):
    def refused(match, kind="encoder", rows=3):
        with pytest.raises(AdapterError, match=match):
            inspect_adapter(adapter.path, base=causal_base, base_kind=kind, head_rows=rows)

    refused("'score' in the adapter has 3 rows, but the ensemble needs 4", rows=4)
    refused("scores labels as text", kind="causal", rows=None)
    sound = adapter.tensors()
    adapter.set_tensors(sound | {SCORE: np.zeros((3, 8), dtype=np.float32)})
    refused("vectors of 8 values, but the base gives 16")
    adapter.set_tensors(sound | {SCORE: np.full((3, 16), np.nan, dtype=np.float32)})
    refused("NaN or infinite")
    adapter.set_tensors(sound | {SCORE: np.zeros(16, dtype=np.float32)})
    refused(r"weight of \[labels, hidden\]")
    bias = SCORE.replace("weight", "bias")
    adapter.set_tensors(sound | {bias: np.zeros(2, dtype=np.float32)})
    refused(r"bias of \[labels\]")
    adapter.set_tensors(sound)
    adapter.add_head()
    refused("two heads")


def test_a_saved_module_that_is_no_head_is_refused(causal_base, adapter):
    adapter.set_config(modules_to_save=["score", "embed_tokens"])
    with pytest.raises(AdapterError, match="embed_tokens in modules_to_save"):
        inspect_adapter(adapter.path, base=causal_base, base_kind="encoder", head_rows=3)


def test_parts_of_another_familys_head_are_refused(encoder_base, tmp_path):
    adapter = classifier(encoder_base, tmp_path / "adapter", "query", "value")
    sound = adapter.tensors()

    def refused(match, **more):
        adapter.set_tensors({k: v for k, v in (sound | more).items() if v is not None})
        with pytest.raises(AdapterError, match=match):
            inspect_adapter(adapter.path, base=encoder_base, base_kind="encoder", head_rows=3)

    stem = "base_model.model."
    refused("not part of this base's sequence classifier", **{SCORE: np.zeros((3, 16), "f4")})
    dense = f"{stem}classifier.dense.weight"
    refused("has bert.pooler.dense, classifier", **{dense: np.zeros((16, 16), "f4")})
    wide = f"{stem}bert.pooler.dense.weight"
    refused(
        r"'bert.pooler.dense' of the head must have a weight", **{wide: np.zeros((8, 16), "f4")}
    )
    refused("needs 'classifier', which is neither", **{
        f"{stem}classifier.weight": None, f"{stem}classifier.bias": None, wide: np.zeros((16, 16), "f4")
    })  # fmt: skip
    refused("NaN or infinite", **{f"{stem}classifier.bias": np.full(3, np.nan, "f4")})
    refused("has 2 rows, but the ensemble needs 3", **{
        f"{stem}classifier.weight": np.zeros((2, 16), "f4"), f"{stem}classifier.bias": np.zeros(2, "f4")
    })  # fmt: skip


def test_answers_about_tokens_are_refused_by_name(encoder_base, tmp_path):
    adapter = classifier(encoder_base, tmp_path / "adapter", "query")
    for task, name in (("TOKEN_CLS", "TokenClassification"), ("QUESTION_ANS", "QuestionAnswering")):
        adapter.set_config(task_type=task)
        with pytest.raises(AdapterError, match=f"adapter for {name} .* not about its tokens"):
            inspect_adapter(adapter.path, base=encoder_base, base_kind="encoder", head_rows=3)
