"""The offline reference: the answers of an ensemble's members by PEFT and transformers, in float32.

Evaluation and fitting use it, and tests compare the served engine with it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from serve.adapter import Head
from serve.adapter.folder import read_config
from serve.base.folder import Pooling
from serve.base.positions import longest_text
from serve.base.side_files import read_generation_defaults
from serve.base.two_towers import towers_of
from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from serve.fusion.labels.tasks import outputs
from serve.fusion.token_weights import token_weights
from serve.fusion.tokens.merge import merge
from serve.labels import LabelError, LabelPath, label_texts
from serve.manifest import Ensemble, Member, TokenMethod
from serve.prompting.zero_shot import ensemble_prompts, prompt_head
from training.offline.adapters import ActiveMember, LoadedAdapters
from training.offline.base import load_base
from training.offline.prompts import MemberPrompts
from training.offline.writing import Writer, Written, equal_length
from training.progress import Advance
from training.stages.encoder import pool
from training.stages.fit import pad, pad_tokens, padding_mask
from training.stages.towers.inputs import TowerInputs

LABEL_ROWS = 512
"""Rows (inputs x labels) in one forward pass over label tokens."""
INPUT_ROWS = 64
"""Inputs in one forward pass over prompts."""
ANSWER_ROWS = 8
"""Answers in one forward pass that keeps the distribution at each token."""

Kept = TypeVar("Kept")


def _no_progress(_done: int) -> None:
    return None


class OfflineMembers:
    """The members of one ensemble. The base is loaded once, and each pass uses one member's adapters."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble) -> None:
        """Raises BundleError if an adapter is missing."""
        self.ensemble = ensemble
        self._bundle = bundle
        self._by_heads = bundle.base_kind() == "encoder"
        self._prompts = MemberPrompts(bundle, ensemble)
        self._tokenizer = self._prompts.tokenizer
        self._model, self._pooling = load_base(bundle)
        config = self._model.config.to_dict()
        self._towers = (
            TowerInputs(bundle.base_source, bundle.base_revision) if towers_of(config) else None
        )
        folders = {
            ref.digest: bundle.adapter_dir(ref)
            for member in ensemble.members
            for ref in member.adapters
        }
        self._adapters = LoadedAdapters(
            self._model, folders, bundle.base_on_disk(), bundle.base_kind()
        )
        # Longer inputs are cut as in training: texts for heads lose their end, prompts their beginning.
        virtual = [
            read_config(folder).get("num_virtual_tokens") or 0 for folder in folders.values()
        ]
        self._room = longest_text(config) - max(virtual, default=0)

    def outputs(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        advance: Advance = _no_progress,
    ) -> NDArray[np.float64]:
        """Return the members' label probabilities [members, texts, labels], or values [members, texts].

        `pairs` are the second texts of an ensemble that reads pairs. `advance` counts finished texts, once for each
        member. Raises LabelError if `pairs` are given for single texts or are missing."""
        rows = []
        for member in self.ensemble.members:
            with self._adapters.active(member) as active, torch.inference_mode():
                if self._by_heads:
                    rows.append(self._head_scores(member, texts, pairs, advance))
                else:
                    rows.append(self._text_scores(member, active, texts, advance))
        return outputs(self.ensemble.task, np.stack(rows))

    def gate_vectors(
        self, fusion: Fusion, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> NDArray[np.float64] | None:
        """Return what a gate of `fusion` reads of the texts; None if it has none."""
        return None if fusion.gate is None else self.base_vectors(texts, pairs)

    def base_vectors(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        advance: Advance = _no_progress,
    ) -> NDArray[np.float64]:
        """Return the vectors of the base without adapters [texts, hidden]; of pairs, those of both texts [texts, 2 x
        hidden]. The base must be one that heads read."""
        plain = Member(name="base", adapters=[])
        with self._adapters.active(plain), torch.inference_mode():
            vectors = [self._pooled(texts, advance)]
            if pairs is not None:
                vectors.append(self._pooled(pairs, _no_progress))
        return np.concatenate(vectors, axis=1).astype(np.float64)

    def vectors(
        self, inputs: Sequence[str], advance: Advance = _no_progress
    ) -> NDArray[np.float64]:
        """Return the pooled vectors that each member's base and adapters give [members, inputs, hidden]."""
        found = []
        for member in self.ensemble.members:
            with self._adapters.active(member), torch.inference_mode():
                found.append(self._pooled(inputs, advance))
        return np.stack(found).astype(np.float64)

    def answers(
        self, texts: Sequence[str], max_new_tokens: int, advance: Advance = _no_progress
    ) -> list[list[str]]:
        """Return the greedy answers of each member [members][texts], without surrounding space."""
        return [
            [each.text for each in self.written(member, texts, max_new_tokens, advance)]
            for member in self.ensemble.members
        ]

    def written(
        self,
        member: Member,
        texts: Sequence[str],
        max_new_tokens: int,
        advance: Advance = _no_progress,
    ) -> list[Written]:
        """Return the greedy answers of one of the members [texts], with their tokens."""
        prompts, pixels = self._tokens(member, texts, max_new_tokens), self._prompts.pixels(texts)
        return self._writer.write(
            [member], [prompts], pixels, [1.0], "average", max_new_tokens, advance
        )

    def log_probs(
        self,
        texts: Sequence[str],
        answers: Sequence[Sequence[int]],
        max_new_tokens: int,
        advance: Advance = _no_progress,
    ) -> NDArray[np.float64]:
        """Return the log-probability of each text's answer (token ids, at least one) by each member [members, texts],
        as the model gives it. `max_new_tokens` is the limit that the answers were written with. `advance` counts
        answers, once for each member."""
        scores = np.zeros((len(self.ensemble.members), len(texts)))
        pixels = self._prompts.pixels(texts)
        for number, member in enumerate(self.ensemble.members):
            prompts = self._tokens(member, texts, max_new_tokens)
            whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
            for chunk in equal_length([len(ids) for ids in whole], ANSWER_ROWS):
                ids = torch.tensor([whole[index] for index in chunk])
                places = max(len(answers[index]) for index in chunk)
                ends = [len(prompts[index]) for index in chunk]
                with self._adapters.active(member) as active, torch.inference_mode():
                    passed = active.first(
                        input_ids=ids, prompts=ends, logits_to_keep=places + 1, **pixels(chunk)
                    )
                taken = passed.logits[:, :-1].double().log_softmax(dim=-1)
                own = taken.gather(2, ids[:, -places:, None]).squeeze(2)
                for row, index in enumerate(chunk):
                    scores[number, index] = float(own[row, places - len(answers[index]) :].sum())
                advance(len(chunk))
        return scores

    def fused_answers(
        self,
        texts: Sequence[str],
        method: TokenMethod,
        max_new_tokens: int,
        advance: Advance = _no_progress,
    ) -> list[str]:
        """Return the greedy answers that the members write together, without surrounding space."""
        written = self.fused_written(texts, method, max_new_tokens, advance)
        return [each.text for each in written]

    def fused_written(
        self,
        texts: Sequence[str],
        method: TokenMethod,
        max_new_tokens: int,
        advance: Advance = _no_progress,
    ) -> list[Written]:
        """Return the greedy answers that the members write together, fused at every token by the manifest's weights."""
        members, weights = self.ensemble.members, token_weights(self.ensemble, method)
        prompts = [self._tokens(member, texts, max_new_tokens) for member in members]
        pixels = self._prompts.pixels(texts)
        return self._writer.write(
            members, prompts, pixels, weights, method, max_new_tokens, advance
        )

    def _tokens(self, member: Member, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Return the token ids of a member's prompts, which leave room for `limit` tokens."""
        return self._prompts.tokens(member, texts, max(self._room - limit, 1))

    def answer_log_probs(
        self,
        contexts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        method: TokenMethod,
        keep: Callable[[torch.Tensor], Kept],
        advance: Advance = _no_progress,
    ) -> list[Kept]:
        """Compute the fused log-probabilities [places, V] at the places of each given answer, and return what `keep`
        makes of them.

        `contexts` and `answers` are token ids; each answer has at least one."""
        weights = torch.tensor(token_weights(self.ensemble, method))
        kept: list[Kept | None] = [None] * len(contexts)
        whole = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
        for chunk in equal_length([len(ids) for ids in whole], ANSWER_ROWS):
            ids = torch.tensor([whole[index] for index in chunk])
            places = max(len(answers[index]) for index in chunk)
            passes = []
            for member in self.ensemble.members:
                with self._adapters.active(member) as active, torch.inference_mode():
                    ends = [len(contexts[index]) for index in chunk]
                    passed = active.first(input_ids=ids, prompts=ends, logits_to_keep=places + 1)
                    logits = passed.logits
                passes.append(logits[:, :-1].double().log_softmax(dim=-1))
            for row, index in enumerate(chunk):
                own = torch.stack([each[row] for each in passes], dim=1)
                fused = merge(own, weights.to(own).expand(len(own), -1), method)
                kept[index] = keep(fused[places - len(answers[index]) :])
            advance(len(chunk))
        return [each for each in kept if each is not None]

    @cached_property
    def _writer(self) -> Writer:
        bundle = self._bundle
        defaults = read_generation_defaults(
            bundle.base_source, self._tokenizer, bundle.base_revision
        )
        return Writer(self._adapters, self._tokenizer, defaults)

    def _head_scores(
        self,
        member: Member,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        advance: Advance,
    ) -> NDArray[np.float64]:
        """Return the scores of the member's head [texts, outputs]."""
        if self.ensemble.prompts:
            head = self._prompted_head()
            return head.scores(self._pooled(texts, advance))
        folder = self._bundle.adapter_dir(member.adapters[0])
        head = Head.read(folder, self._adapters.base)
        if pairs is not None and head.joins:
            return head.scores(self._pooled(texts, advance, head.pooling, pairs))
        if head.towers != (pairs is not None):
            reads = "single texts" if pairs is not None else "pairs of texts"
            raise LabelError(f"The head of member {member.name!r} reads {reads}.")
        vectors = self._pooled(texts, advance, head.pooling)
        second = None if pairs is None else self._pooled(pairs, _no_progress, head.pooling)
        return head.scores(vectors, second)

    def _prompted_head(self) -> Head:
        """Return the head that the labels' texts stand for under the active member. Raises LabelError if the base
        reads texts alone."""
        if self._towers is None:
            raise LabelError("'prompts' needs a CLIP or a SigLIP as the base.")
        texts = self._towers.vectors(self._model, ensemble_prompts(self.ensemble), INPUT_ROWS)
        scale = float(self._model.logit_scale.exp())
        return prompt_head(texts, len(self.ensemble.prompts), scale)

    def _pooled(
        self,
        texts: Sequence[str],
        advance: Advance,
        pooling: Pooling | None = None,
        joined: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        """Return the pooled vectors of the texts [texts, hidden]. `pooling`: of the head that reads them; None: the
        base's own. `joined`: second texts, which the tokenizer joins to the first ones. Over a CLIP or SigLIP, texts
        that are data URLs are images."""
        if self._towers is not None:
            return self._towers.vectors(self._model, texts, INPUT_ROWS, advance)
        second = None if joined is None else list(joined)
        tokens = self._tokenizer(list(texts), second, truncation=True, max_length=self._room)
        ids = tokens["input_ids"]
        typed = self._model.config.to_dict().get("type_vocab_size", 1) > 1
        types = tokens.get("token_type_ids") if joined is not None and typed else None
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = np.empty((len(ids), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), INPUT_ROWS):
            chunk = order[start : start + INPUT_ROWS]
            rows = [ids[index] for index in chunk]
            mask = padding_mask(rows)
            ids_of = pad_tokens(rows, self._tokenizer)
            inputs = {"input_ids": ids_of, "attention_mask": mask}
            if types is not None:
                inputs["token_type_ids"] = pad([types[index] for index in chunk], 0)
            states = self._model.base_model(**inputs).last_hidden_state
            vectors[chunk] = pool(states, mask, False, pooling or self._pooling).numpy()
            advance(len(chunk))
        return vectors

    def _text_scores(
        self, member: Member, active: ActiveMember, texts: Sequence[str], advance: Advance
    ) -> NDArray[np.float64]:
        """Return the scores of the labels as text [texts, labels]."""
        labels = label_texts(self.ensemble.labels or [], self.ensemble.verbalizers)
        plans = self._prompts.paths(member, texts, labels, self._room)
        pixels = self._prompts.pixels(texts)
        shared = [min(len(path.context) for path in plan) for plan in plans]
        result = np.empty((len(texts), len(labels)), dtype=np.float64)
        for chunk in equal_length(shared, max(1, LABEL_ROWS // len(labels))):
            own = [plans[index] for index in chunk]
            scores = self._label_scores(active, own, shared[chunk[0]], pixels(chunk))
            if self.ensemble.label_scoring == "mean":
                scores /= torch.tensor(
                    [[len(path.tokens) for path in plans[index]] for index in chunk]
                )
            result[chunk] = scores.numpy()
            advance(len(chunk))
        return result

    def _label_scores(
        self,
        active: ActiveMember,
        plans: Sequence[Sequence[LabelPath]],
        shared: int,
        pixels: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the sums of the labels' log-probabilities [plans, labels]. `pixels` are those of the prompts' images.

        The first `shared` tokens of each plan are computed once. For each label, the rest of its context and its tokens
        run on a copy of their cache.
        """
        labels = len(plans[0])
        prompts = torch.tensor([plan[0].context[:shared] for plan in plans])
        out = active.first(input_ids=prompts, use_cache=True, logits_to_keep=1, **pixels)
        first = out.logits[:, -1].double().log_softmax(-1).repeat_interleave(labels, dim=0)
        paths = [path for plan in plans for path in plan]
        tails = [[*path.context[shared:], *path.tokens] for path in paths]
        counted = pad(
            [[0] * (len(p.context) - shared) + [1] * len(p.tokens) for p in paths], 0
        ).double()
        ids = pad_tokens(tails, self._tokenizer)
        scores = first.gather(1, ids[:, :1]) * counted[:, :1]
        if ids.shape[1] > 1:
            cache = out.past_key_values
            cache.batch_repeat_interleave(labels)
            rest = active.later(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
            rest = rest.double().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(-1)
            scores = torch.cat([scores, rest * counted[:, 1:]], dim=1)
        return scores.sum(dim=1).reshape(len(plans), labels)
