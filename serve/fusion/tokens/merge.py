"""Merges the members' log-probabilities into one distribution, and measures how far the members are apart."""

from typing import TypeAlias, get_args

import torch

from serve.fusion.errors import FusionError
from serve.manifest import TokenMethod

Tensor: TypeAlias = torch.Tensor

MASKED = float("-inf")


def merge(
    log_probs: Tensor, weights: Tensor, method: TokenMethod, plausibility: Tensor | None = None
) -> Tensor:
    """Returns the fused log-probabilities [G, V] of members [G, N, V] under weights [G, N].

    `average` and `weighted_average`: log sum w_i p_i, the linear opinion pool; weights sum to 1. `product`: the
    log-softmax of sum w_i log p_i, the logarithmic opinion pool (Genest and Zidek 1986; Hinton 2002). Its weights are
    used as given and may be negative, as in contrastive decoding (Li et al. 2023) and classifier-free guidance (Sanchez
    et al. 2023). With `product`, a token that is masked for a member of weight other than 0 is masked for all, and
    `plausibility` [G] (see `plausible`) applies.

    The result is never NaN. A row in which no token is left is all -inf. Raises FusionError for an unknown method."""
    if method not in get_args(TokenMethod):
        raise FusionError(
            f"The method {method!r} does not fuse tokens; {', '.join(get_args(TokenMethod))} do."
        )
    if method != "product":
        # as probabilities: in float32 less only below e^-87, and faster than logsumexp over so few members
        return log_probs.exp().mul_(weights.unsqueeze(-1)).sum(dim=1).log_()
    factors = weights.unsqueeze(-1)
    masked = ((log_probs == MASKED) & (factors != 0)).any(dim=1)
    if plausibility is not None:
        masked |= ~plausible(log_probs, weights, plausibility)
    scores = (log_probs.masked_fill(log_probs == MASKED, 0.0) * factors).sum(dim=1)
    scores = scores.masked_fill(masked, MASKED)
    return normalise(scores)


def normalise(scores: Tensor) -> Tensor:
    """Returns the log-softmax over the last axis. A row that is all -inf stays as it is."""
    nothing = (scores == MASKED).all(dim=-1, keepdim=True)
    return scores.masked_fill(nothing, 0.0).log_softmax(dim=-1).masked_fill(nothing, MASKED)


def plausible(log_probs: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """Returns which tokens [G, V] are likely enough: the adaptive plausibility constraint of Li et al. (2023).

    A token is if the member with the highest weight (the first of equals) gives it at least `share` [G] of the
    probability of that member's most likely token. Where no weight is positive, all tokens are."""
    highest, best = weights.max(dim=1)
    expert = log_probs[torch.arange(len(best), device=best.device), best]
    least = expert.amax(dim=-1) + share.log()
    return (expert >= least.unsqueeze(-1)) | (highest <= 0).unsqueeze(-1)


def disagreement(log_probs: Tensor, weights: Tensor, method: TokenMethod) -> Tensor:
    """Returns H(mean) - mean(H) [G] of members [G, N, V], in nats: the mutual information of token and member.

    `weighted_average` uses `weights` [G, N]. The weights of the other methods make no mixture, so they use equal ones.
    """
    if method != "weighted_average":
        weights = torch.full_like(weights, 1 / weights.shape[1])
    probs = log_probs.exp()
    mean = torch.einsum("gn,gnv->gv", weights, probs)
    own = (weights * torch.special.entr(probs).sum(dim=-1)).sum(dim=1)
    return (torch.special.entr(mean).sum(dim=-1) - own).clamp(min=0.0)
