"""The offline reference: what PEFT and transformers answer in float32 for the members of an ensemble.

Evaluation and fitting use it, and the served engine is checked against it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from serve.base import pooling_of
from serve.bundle import Bundle, Ensemble, Member
from serve.fusion.labels.tasks import outputs
from serve.fusion.token_weights import token_weights
from serve.fusion.tokens.merge import merge
from serve.fusion.tokens.sampling import Sampling
from serve.fusion.tokens.step import fuse_step
from serve.labels import LabelError, LabelPath, encoder, fill, label_paths, label_texts
from serve.manifest import TokenMethod
from training.offline.adapters import LoadedAdapters
from training.stages.encoder import HEAD_FILE, pool, towers
from training.stages.fit import pad, padding_mask

LABEL_ROWS = 512
"""Rows (inputs x labels) of one forward pass over label tokens."""
INPUT_ROWS = 64
"""Inputs of one forward pass over prompts."""
ANSWER_ROWS = 8
"""Answers of one forward pass that keeps the distribution at each of their tokens."""

Advance = Callable[[int], None]
Kept = TypeVar("Kept")


def _no_progress(_done: int) -> None:
    return None


class OfflineMembers:
    """The members of one ensemble, with the base loaded once and adapters chosen for each pass."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble) -> None:
        """Raises BundleError when an adapter is missing."""
        self.ensemble = ensemble
        self._bundle = bundle
        self._by_heads = bundle.base_kind() == "encoder"
        source = {
            "pretrained_model_name_or_path": bundle.base_source,
            "revision": bundle.base_revision or "main",
        }
        self._pooling = pooling_of(AutoConfig.from_pretrained(**source).to_dict())
        plain = self._by_heads and self._pooling == "mean"
        loader = AutoModel if plain else AutoModelForCausalLM
        self._tokenizer: Any = AutoTokenizer.from_pretrained(**source)
        self._model: Any = loader.from_pretrained(**source, dtype=torch.float32)
        self._adapters = LoadedAdapters(
            self._model,
            {
                ref.digest: bundle.adapter_dir(ref)
                for member in ensemble.members
                for ref in member.adapters
            },
            bundle.base_folder,
            bundle.base_kind(),
        )

    def outputs(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        advance: Advance = _no_progress,
    ) -> NDArray[np.float64]:
        """What the members say: label probabilities [members, texts, labels], or values [members, texts].

        `pairs` are the second texts of an ensemble that reads pairs. `advance` hears how many texts a member has done.
        Raises LabelError for pairs where single texts are read, or the other way round."""
        rows = []
        for member in self.ensemble.members:
            with self._adapters.active(member) as model, torch.inference_mode():
                if self._by_heads:
                    rows.append(self._head_scores(member, texts, pairs, advance))
                else:
                    rows.append(self._text_scores(model, texts, advance))
        return outputs(self.ensemble.task, np.stack(rows))

    def answers(
        self, texts: Sequence[str], max_new_tokens: int, advance: Advance = _no_progress
    ) -> list[list[str]]:
        """Greedy answers of each member to each text: [members][texts], without surrounding space."""
        encode = encoder(self._tokenizer)
        prompts = encode([fill(self.ensemble.template, text) for text in texts])
        answers = []
        for member in self.ensemble.members:
            with self._adapters.active(member) as model, torch.inference_mode():
                answers.append(self._written(model, prompts, max_new_tokens, advance))
        return answers

    def fused_answers(
        self,
        texts: Sequence[str],
        method: TokenMethod,
        max_new_tokens: int,
        advance: Advance = _no_progress,
    ) -> list[str]:
        """Greedy answers that all members write together, fused at every token by the manifest's weights."""
        encode = encoder(self._tokenizer)
        prompts = encode([fill(self.ensemble.template, text) for text in texts])
        weights = torch.tensor(token_weights(self.ensemble, method))
        written = [""] * len(prompts)
        for chunk in _equal_length([len(prompt) for prompt in prompts], INPUT_ROWS):
            ids = torch.tensor([prompts[index] for index in chunk])
            with torch.inference_mode():
                rows = self._written_together(ids, weights, method, max_new_tokens)
            for index, row in zip(chunk, rows, strict=True):
                written[index] = self._tokenizer.decode(row, skip_special_tokens=True).strip()
            advance(len(chunk))
        return written

    def answer_log_probs(
        self,
        contexts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        method: TokenMethod,
        keep: Callable[[torch.Tensor], Kept],
        advance: Advance = _no_progress,
    ) -> list[Kept]:
        """What `keep` makes of the fused log-probabilities [places, V] at the places of each given answer.

        `contexts` and `answers` are token ids; an answer has one or more."""
        weights = torch.tensor(token_weights(self.ensemble, method))
        kept: list[Kept | None] = [None] * len(contexts)
        whole = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
        for chunk in _equal_length([len(ids) for ids in whole], ANSWER_ROWS):
            ids = torch.tensor([whole[index] for index in chunk])
            places = max(len(answers[index]) for index in chunk)
            passes = []
            for member in self.ensemble.members:
                with self._adapters.active(member) as model, torch.inference_mode():
                    logits = model(input_ids=ids, logits_to_keep=places + 1).logits
                passes.append(logits[:, :-1].double().log_softmax(dim=-1))
            for row, index in enumerate(chunk):
                own = torch.stack([each[row] for each in passes], dim=1)
                fused = merge(own, weights.to(own).expand(len(own), -1), method)
                kept[index] = keep(fused[places - len(answers[index]) :])
            advance(len(chunk))
        return [each for each in kept if each is not None]

    def _written_together(
        self, ids: torch.Tensor, weights: torch.Tensor, method: TokenMethod, limit: int
    ) -> list[list[int]]:
        """Tokens that follow the prompts `ids` [B, L], up to each one's end token."""
        rows: list[list[int]] = [[] for _ in ids]
        going = torch.ones(len(ids), dtype=torch.bool)
        caches: list[Any] = [None] * len(self.ensemble.members)
        greedy = [Sampling(temperature=0.0)] * len(ids)
        for position in range(limit):
            logits = []
            for number, member in enumerate(self.ensemble.members):
                with self._adapters.active(member) as model:
                    goes_on = model if caches[number] is None else self._model
                    out = goes_on(
                        input_ids=ids,
                        past_key_values=caches[number],
                        use_cache=True,
                        logits_to_keep=1,
                    )
                caches[number] = out.past_key_values
                logits.append(out.logits[:, -1])
            step = fuse_step(
                torch.stack(logits, dim=1),
                weights.expand(len(ids), -1),
                method,
                samplings=greedy,
                positions=[position] * len(ids),
            )
            going &= step.tokens != self._tokenizer.eos_token_id
            for row, token, goes in zip(rows, step.tokens.tolist(), going.tolist(), strict=True):
                if goes:
                    row.append(token)
            if not going.any():
                break
            ids = step.tokens.unsqueeze(1)
        return rows

    def _head_scores(
        self,
        member: Member,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        advance: Advance,
    ) -> NDArray[np.float64]:
        """[texts, outputs] of the member's head."""
        folder = self._bundle.adapter_dir(member.adapters[0])
        with safe_open(folder / HEAD_FILE, framework="pt") as head:
            weight, bias = head.get_tensor("weight"), head.get_tensor("bias")
            metadata = head.metadata() or {}
        if (metadata.get("pair") == "towers") != (pairs is not None):
            reads = "single texts" if pairs is not None else "pairs of texts"
            raise LabelError(f"The head of member {member.name!r} reads {reads}.")
        normalize = metadata.get("normalize") == "true"
        vectors = self._pooled(texts, normalize, advance)
        if pairs is not None:
            vectors = towers(vectors, self._pooled(pairs, normalize, _no_progress))
        scores: NDArray[np.float64] = (vectors @ weight.T + bias).double().numpy()
        return scores

    def _pooled(self, texts: Sequence[str], normalize: bool, advance: Advance) -> torch.Tensor:
        """[texts, hidden]"""
        limit = self._model.config.max_position_embeddings
        ids = self._tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = torch.empty((len(ids), self._model.config.hidden_size))
        for start in range(0, len(order), INPUT_ROWS):
            chunk = order[start : start + INPUT_ROWS]
            rows = [ids[index] for index in chunk]
            mask = padding_mask(rows)
            ids_of = pad(rows, self._tokenizer.pad_token_id or 0)
            states = self._model.base_model(input_ids=ids_of, attention_mask=mask).last_hidden_state
            vectors[chunk] = pool(states, mask, normalize, self._pooling)
            advance(len(chunk))
        return vectors

    def _text_scores(
        self, model: Any, texts: Sequence[str], advance: Advance
    ) -> NDArray[np.float64]:
        """[texts, labels] of the labels' texts."""
        encode = encoder(self._tokenizer)
        labels = label_texts(self.ensemble.labels or [], self.ensemble.verbalizers)
        plans = [label_paths(encode, fill(self.ensemble.template, text), labels) for text in texts]
        shared = [min(len(path.context) for path in plan) for plan in plans]
        result = np.empty((len(texts), len(labels)), dtype=np.float64)
        for chunk in _equal_length(shared, max(1, LABEL_ROWS // len(labels))):
            scores = self._label_scores(model, [plans[index] for index in chunk], shared[chunk[0]])
            if self.ensemble.label_scoring == "mean":
                scores /= torch.tensor(
                    [[len(path.tokens) for path in plans[index]] for index in chunk]
                )
            result[chunk] = scores.numpy()
            advance(len(chunk))
        return result

    def _label_scores(
        self, model: Any, plans: Sequence[Sequence[LabelPath]], shared: int
    ) -> torch.Tensor:
        """Sums of log-probabilities [plans, labels]; the first `shared` tokens of a plan are computed once.

        What follows them (the rest of a label's context, if any, and its tokens) runs on a copy of their cache a label.
        """
        labels = len(plans[0])
        prompts = torch.tensor([plan[0].context[:shared] for plan in plans])
        out = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        first = out.logits[:, -1].double().log_softmax(-1).repeat_interleave(labels, dim=0)
        paths = [path for plan in plans for path in plan]
        tails = [[*path.context[shared:], *path.tokens] for path in paths]
        counted = pad(
            [[0] * (len(p.context) - shared) + [1] * len(p.tokens) for p in paths], 0
        ).double()
        ids = pad(tails, self._tokenizer.pad_token_id or 0)
        scores = first.gather(1, ids[:, :1]) * counted[:, :1]
        if ids.shape[1] > 1:
            cache = out.past_key_values
            cache.batch_repeat_interleave(labels)
            rest = self._model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
            rest = rest.double().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(-1)
            scores = torch.cat([scores, rest * counted[:, 1:]], dim=1)
        return scores.sum(dim=1).reshape(len(plans), labels)

    def _written(
        self, model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, advance: Advance
    ) -> list[str]:
        texts = [""] * len(prompts)
        for chunk in _equal_length([len(prompt) for prompt in prompts], INPUT_ROWS):
            ids = torch.tensor([prompts[index] for index in chunk])
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            )
            for index, row in zip(chunk, written[:, ids.shape[1] :], strict=True):
                texts[index] = self._tokenizer.decode(row, skip_special_tokens=True).strip()
            advance(len(chunk))
        return texts


def _equal_length(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in chunks of at most `rows`, each of one length, so that nothing is padded on the left."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[length].append(index)
    for length in sorted(groups):
        for start in range(0, len(groups[length]), rows):
            yield groups[length][start : start + rows]
