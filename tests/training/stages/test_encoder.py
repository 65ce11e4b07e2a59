"""The start of the heads of encoder members, and their batches."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from serve.base.folder import Pooling
from serve.manifest import Task
from training.recipe import LoraStage
from training.stages.encoder import EncoderWithHead, collate_for, pool, towers

HIDDEN = 6


class Looked(nn.Module):
    """An encoder whose tokens' vectors are a table's rows."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


Make = Callable[..., tuple[EncoderWithHead, Mapping[str, torch.Tensor]]]


@pytest.fixture
def make() -> Make:
    """`make(task, outputs, labels, towers=...)`: a model, and one batch of as many one-token rows as labels."""

    def build(
        task: Task, outputs: int, labels: torch.Tensor, pairs: bool = False
    ) -> tuple[EncoderWithHead, Mapping[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        rows = len(labels) * (2 if pairs else 1)
        table = torch.randn(rows, HIDDEN, generator=generator)
        model = EncoderWithHead(Looked(table), HIDDEN, outputs, pairs, task, LoraStage())
        ids = torch.arange(rows)[:, None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return model, batch

    return build


def test_a_head_over_pairs_starts_as_the_line_through_their_cosines(make: Make) -> None:
    values = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 5
    model, batch = make("regression", 1, values, pairs=True)
    model.start_informed([batch])
    u, v = nn.functional.normalize(model.encoder.table, dim=-1).chunk(2)
    cosines = (u * v).sum(-1, keepdim=True)
    line = LinearRegression().fit(cosines.numpy(), values.numpy())
    with torch.no_grad():
        said = model.head(model.features(batch))[:, 0]
    # The ridge that keeps the line sound flattens it a little.
    expected = torch.tensor(line.predict(cosines.numpy()))
    assert torch.corrcoef(torch.stack([said, expected]))[0, 1] == pytest.approx(1, abs=1e-4)
    assert (said - expected).abs().max() < 0.2
    assert not model.head.weight[:, : 3 * HIDDEN].any(), "only the part over u*v is used"


def test_a_head_over_single_texts_starts_at_ridge_regression(make: Make) -> None:
    values = torch.rand(400, generator=torch.Generator().manual_seed(1)) + 3
    model, batch = make("regression", 1, values)
    model.start_informed([batch])
    with torch.no_grad():
        said = model.head(model.features(batch))[:, 0]
    assert said.mean() == pytest.approx(float(values.mean()), abs=1e-4)
    assert ((said - values) ** 2).mean() < values.var()


def test_a_multilabel_head_starts_at_centroids_with_priors(make: Make) -> None:
    truth = torch.zeros(60, 3, dtype=torch.bool)
    truth[:30, 0], truth[::10, 1] = True, True
    model, batch = make("multilabel", 3, truth)
    with torch.no_grad():
        model.encoder.table[:30] += 2
    model.start_informed([batch])
    with torch.no_grad():
        scores = model.scale * model.head(model.features(batch))
    assert scores[:30, 0].mean() > scores[30:, 0].mean() + 2
    priors = torch.tensor([31, 7, 1]) / 62
    torch.testing.assert_close(scores.mean(dim=0), priors.logit(), atol=1e-4, rtol=0)


def test_pairs_are_read_as_two_towers() -> None:
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.5]])
    assert towers(u, v).tolist() == [[1, 2, 3, 0.5, 2, 1.5, 3, 1]]


def test_a_batch_of_pairs_holds_the_second_texts_behind_the_first_ones() -> None:
    rows = [
        {"input_ids": [1, 2], "pair_ids": [3], "labels": 0.5},
        {"input_ids": [4], "pair_ids": [5, 6, 7], "labels": 1.0},
    ]
    batch = collate_for(SimpleNamespace(pad_token_id=0))(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [4, 0, 0], [3, 0, 0], [5, 6, 7]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 1, 1, 3]
    assert batch["labels"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [[2.0], [6.0]]), ("cls", [[1.0], [6.0]]), ("last", [[3.0], [6.0]])],
)
def test_a_text_is_read_at_its_own_tokens(pooling: Pooling, expected: list[list[float]]) -> None:
    states = torch.tensor([[[1.0], [2.0], [3.0]], [[6.0], [9.0], [9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert pool(states, mask, normalize=False, pooling=pooling).tolist() == expected
