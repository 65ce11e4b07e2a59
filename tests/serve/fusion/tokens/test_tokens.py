"""Token-level fusion: its mathematics by hand, and its choice of tokens by counting."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from serve.fusion.errors import FusionError
from serve.fusion.token_weights import token_method, token_plausibility, token_weights
from serve.fusion.tokens.merge import disagreement, merge
from serve.fusion.tokens.penalties import Penalties, penalise
from serve.fusion.tokens.sampling import Sampling, draw, narrow
from serve.fusion.tokens.step import fuse_step, likeliest

METHODS = ("average", "weighted_average", "product")
GREEDY = Sampling(temperature=0.0)


def logs(*rows: list[float]) -> torch.Tensor:
    """[1, N, V] log-probabilities of one group."""
    return torch.tensor([rows], dtype=torch.float32).log()


def by(*weights: float) -> torch.Tensor:
    return torch.tensor([weights], dtype=torch.float32)


def test_averages_by_hand() -> None:
    members = logs([0.5, 0.25, 0.25], [0.1, 0.9, 0.0])
    mean = merge(members, by(0.5, 0.5), "average").exp()
    torch.testing.assert_close(mean, torch.tensor([[0.3, 0.575, 0.125]]))
    weighted = merge(members, by(0.8, 0.2), "weighted_average").exp()
    torch.testing.assert_close(weighted, torch.tensor([[0.42, 0.38, 0.2]]))


def test_product_by_hand() -> None:
    members = logs([0.5, 0.3, 0.2], [0.2, 0.4, 0.4])
    raw = np.array([0.5**0.5 * 0.2**0.5, 0.3**0.5 * 0.4**0.5, 0.2**0.5 * 0.4**0.5])
    fused = merge(members, by(0.5, 0.5), "product").exp().numpy()[0]
    np.testing.assert_allclose(fused, raw / raw.sum(), rtol=1e-5)
    raw = np.array([0.5**2 / 0.2, 0.3**2 / 0.4, 0.2**2 / 0.4])
    contrast = merge(members, by(2.0, -1.0), "product").exp().numpy()[0]
    np.testing.assert_allclose(contrast, raw / raw.sum(), rtol=1e-5)


def test_plausibility_keeps_what_the_expert_finds_likely_enough() -> None:
    members = logs([0.6, 0.3, 0.1], [0.9, 0.09, 0.01])
    without = merge(members, by(1.0, -1.0), "product").exp()[0]
    assert without.argmax() == 2, "the amateur dislikes it most"
    fused = merge(members, by(1.0, -1.0), "product", torch.tensor([0.4])).exp()[0]
    ratio = np.array([0.6 / 0.9, 0.3 / 0.09])
    np.testing.assert_allclose(fused.numpy(), [*(ratio / ratio.sum()), 0.0], rtol=1e-5)
    off = merge(members, by(1.0, -1.0), "product", torch.tensor([0.0])).exp()[0]
    torch.testing.assert_close(off, without)


@pytest.mark.parametrize("method", METHODS)
def test_one_member_is_itself_and_order_does_not_matter(method: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 3, 50, generator=generator) * 3
    members = logits.log_softmax(-1)
    alone = merge(members[:, :1], torch.ones(4, 1), method)
    torch.testing.assert_close(alone, members[:, 0])
    weights = torch.tensor([[0.2, 0.5, 0.3]]).repeat(4, 1)
    order = [2, 0, 1]
    torch.testing.assert_close(
        merge(members[:, order], weights[:, order], method), merge(members, weights, method)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (2.0, -1.0), (1.0, 0.0)])
def test_masks_never_make_nan(method: Any, weights: tuple[float, float]) -> None:
    if method != "product" and min(weights) < 0:
        return
    members = logs([0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0])
    fused = merge(members, by(*weights), method)[0]
    assert not fused.isnan().any()
    assert fused[3] == -math.inf
    assert math.isclose(float(fused.exp().sum()), 1.0, rel_tol=1e-5)
    if method == "product":
        kept = {(0.5, 0.5): [1], (2.0, -1.0): [1], (1.0, 0.0): [0, 1]}[weights]
        assert fused.isfinite().nonzero().flatten().tolist() == kept
    apart = merge(logs([1.0, 0.0], [0.0, 1.0]), by(*weights), method)
    assert not apart.isnan().any()


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(FusionError, match="'vote' does not fuse tokens"):
        merge(logs([1.0]), by(1.0), "vote")  # type: ignore[arg-type]


def test_disagreement_is_the_mutual_information() -> None:
    assert disagreement(logs([1.0, 0.0], [0.0, 1.0]), by(1.0, 1.0), "product").item() == (
        pytest.approx(math.log(2))
    )
    assert disagreement(logs([0.3, 0.7], [0.3, 0.7]), by(0.5, 0.5), "average").item() == (
        pytest.approx(0.0, abs=1e-6)
    )
    p, q, w = np.array([0.5, 0.5]), np.array([0.1, 0.9]), 0.8
    mean = w * p + (1 - w) * q
    entropy = [-(x * np.log(x)).sum() for x in (mean, p, q)]
    expected = entropy[0] - w * entropy[1] - (1 - w) * entropy[2]
    found = disagreement(logs([0.5, 0.5], [0.1, 0.9]), by(w, 1 - w), "weighted_average")
    assert found.item() == pytest.approx(expected, rel=1e-5)


PENALTIES = [
    Penalties(repetition=1.3),
    Penalties(frequency=0.7),
    Penalties(presence=-0.4),
    Penalties(repetition=0.8, frequency=0.2, presence=0.9),
]


@pytest.mark.parametrize("penalties", PENALTIES)
def test_penalties_are_vllms(penalties: Penalties) -> None:
    from vllm.model_executor.layers.utils import apply_penalties

    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 40, generator=generator) * 4
    prompts, outputs = [[3, 3, 9, 20], [1, 39]], [[5, 5, 3], [39, 0, 0, 0]]
    expected = apply_penalties(
        logits.clone(),
        torch.tensor([prompts[0], [*prompts[1], 40, 40]]),
        torch.tensor([[*outputs[0], 40], outputs[1]]),
        torch.full((2,), penalties.presence),
        torch.full((2,), penalties.frequency),
        torch.full((2,), penalties.repetition),
    )
    for row in range(2):
        found = penalise(logits[row], prompts[row], outputs[row], penalties)
        torch.testing.assert_close(found, expected[row])
    assert not torch.equal(expected, logits)
    assert torch.equal(penalise(logits[0], [1], [2], Penalties()), logits[0])


def test_repetition_is_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(30, generator=torch.Generator().manual_seed(3))
    seen = [4, 4, 8, 29]
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([seen]), logits[None].clone())[0]
    found = penalise(logits, seen[:2], seen[2:], Penalties(repetition=1.5))
    torch.testing.assert_close(found, expected)


def test_narrowing_by_hand() -> None:
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def kept(**fields: float) -> list[float]:
        return narrow(probs.log(), Sampling(**fields)).exp().tolist()  # type: ignore[arg-type]

    assert kept(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.65) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.01) == pytest.approx([1, 0, 0, 0])
    assert kept(min_p=0.6) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_k=-1) == pytest.approx(probs.tolist())
    squares = np.array([0.16, 0.09, 0.04, 0.01]) / 0.3
    assert kept(temperature=0.5) == pytest.approx(squares.tolist(), rel=1e-5)
    # top-p reads what top-k left, and temperature comes before both
    assert kept(temperature=0.5, top_k=3, top_p=0.6) == pytest.approx([0.64, 0.36, 0, 0])


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_follow_the_fused_distribution(top_p: float) -> None:
    """Chi-square over 20,000 positions of one seed, and over 20,000 seeds of one position."""
    members = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(4)) * 2
    fused = merge(members.log_softmax(-1), by(0.5, 0.3, 0.2), "weighted_average")[0]
    sampling = Sampling(temperature=0.7, top_p=top_p)
    scores = narrow(fused, sampling)
    weights = fused.double().exp().numpy() ** (1 / 0.7)
    expected = weights / weights.sum()
    if top_p < 1:
        order = np.argsort(-expected)
        before = np.cumsum(expected[order]) - expected[order]
        expected[order[before >= top_p]] = 0
        expected /= expected.sum()
        assert 1 < (expected > 0).sum() < 20
    for draws in (
        [int(draw(scores, 11, position)) for position in range(20_000)],
        [int(draw(scores, seed, 5)) for seed in range(20_000)],
    ):
        counts = np.bincount(draws, minlength=20)
        assert counts[expected == 0].sum() == 0
        possible = expected > 0
        result = chisquare(counts[possible], 20_000 * expected[possible])
        print(f"top_p {top_p}: chi-square {result.statistic:.1f}, p = {result.pvalue:.3f}")
        assert result.pvalue > 1e-3


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    """Not on the groups beside it, nor on what was drawn before."""
    logits = torch.randn(3, 2, 100, generator=torch.Generator().manual_seed(5))
    weights = torch.full((3, 2), 0.5)
    samplings = [Sampling(seed=seed) for seed in (7, 8, 9)]

    def tokens(groups: list[int], position: int) -> list[int]:
        step = fuse_step(
            logits[groups],
            weights[groups],
            "average",
            samplings=[samplings[group] for group in groups],
            positions=[position] * len(groups),
        )
        return [int(token) for token in step.tokens]

    together = [tokens([0, 1, 2], position) for position in range(30)]
    again = [tokens([2, 0], position) for position in reversed(range(30))][::-1]
    assert [[row[2], row[0]] for row in together] == again
    assert len({row[0] for row in together}) > 5, "positions differ"
    assert [row[0] for row in together] != [row[1] for row in together]


def test_the_likeliest_token_is_the_one_of_a_whole_greedy_step() -> None:
    logits = torch.randn(200, 3, 60, generator=torch.Generator().manual_seed(8)) * 3
    logits[::2, 1, :30] = float("-inf")
    weights = torch.tensor([[0.5, 0.4, 0.1]]).repeat(200, 1)
    samplings, positions = [GREEDY] * 200, [0] * 200
    step = fuse_step(logits, weights, "weighted_average", samplings=samplings, positions=positions)
    tokens = likeliest(logits, weights)
    assert tokens.tolist() == step.tokens.tolist()
    assert tokens.tolist() != logits.mean(dim=1).argmax(dim=-1).tolist()


def test_a_greedy_step_takes_the_top_of_the_fused_distribution() -> None:
    logits = torch.randn(5, 3, 60, generator=torch.Generator().manual_seed(6)) * 2
    weights = torch.tensor([[1.5, 0.5, -1.0]]).repeat(5, 1)
    step = fuse_step(logits, weights, "product", samplings=[GREEDY] * 5, positions=[0] * 5)
    scores = np.einsum("n,gnv->gv", [1.5, 0.5, -1.0], logits.log_softmax(-1).double().numpy())
    assert step.tokens.tolist() == scores.argmax(-1).tolist()
    assert step.members.shape == (5, 3, 60)
    assert (step.disagreement() > 0).all()


def test_weights_of_a_request(make_ensemble: Any) -> None:
    ensemble = make_ensemble(
        weights=(1.0, 3.0), labels=None, task="generation", method="weighted_average"
    )
    assert token_method(ensemble) == "weighted_average"
    assert token_method(ensemble, "vote") is None
    assert token_method(ensemble, "mbr") is None
    assert token_method(ensemble, "stack") is None
    assert token_weights(ensemble, "weighted_average") == (0.25, 0.75)
    assert token_weights(ensemble, "average") == (0.5, 0.5)
    assert token_weights(ensemble, "product", {"m1": -1, "m0": 2}) == (2.0, -1.0)
    assert token_weights(ensemble, "weighted_average", {"m0": 1, "m1": 1}) == (0.5, 0.5)
    assert token_plausibility(ensemble, "product", 0.1) == 0.1
    for method, weights, message in (
        ("average", {"m0": 1.0, "m1": 1.0}, "not for average"),
        ("weighted_average", {"m0": -1.0, "m1": 2.0}, "at least 0"),
        ("product", {"m0": 1.0}, "m1"),
        ("product", {"m0": 0.0, "m1": 0.0}, "All weights are 0"),
    ):
        with pytest.raises(FusionError, match=message):
            token_weights(ensemble, method, weights)  # type: ignore[arg-type]
    with pytest.raises(FusionError, match=r"'gate' is not served for generation; .* vote, mbr"):
        token_method(ensemble, "gate")
    with pytest.raises(FusionError, match="plausibility"):
        token_plausibility(ensemble, "average", 0.1)


def test_the_gateway_does_not_load_torch() -> None:
    import subprocess
    import sys

    code = "import serve.fusion.fuse, serve.fusion.token_weights, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
