"""Lets the members of an ensemble write to texts, each by itself and all together."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from serve.bundle import Bundle
from serve.fusion.answers import answer_method, choose_answer
from serve.fusion.ranking.candidates import Candidates, same_texts
from serve.fusion.ranking.ranker import Ranker
from serve.fusion.token_weights import token_method, token_weights
from serve.manifest import Ensemble, Member, TokenMethod
from training.evaluation.texts.kept import KeptAnswers
from training.evaluation.texts.ranking import ranked_texts
from training.offline.members import OfflineMembers
from training.offline.writing import Written
from training.progress import Advance, Watch, counted

TOKEN_METHODS: tuple[TokenMethod, ...] = ("average", "product")


class Writing:
    """The members of one ensemble write. Answers that the bundle keeps are not written again."""

    def __init__(
        self,
        bundle: Bundle,
        ensemble: Ensemble,
        members: Callable[[], OfflineMembers],
        max_new_tokens: int,
        watch: Watch,
    ) -> None:
        """`members` loads them; where all answers are kept, it is not called."""
        self._bundle = bundle
        self._ensemble = ensemble
        self._members = members
        self._limit = max_new_tokens
        self._watch = watch
        self._kept = KeptAnswers(bundle, ensemble, max_new_tokens)

    def answers(self, texts: Sequence[str], name: str) -> list[list[str]]:
        """Return the members' greedy answers [M][N]. `name` is what progress calls the rows."""
        return [[each.text for each in own] for own in self._written(texts, name)]

    def candidates(self, texts: Sequence[str], name: str) -> list[Candidates]:
        """Return what a ranker reads of the members' answers to each text. Where all answers are equal, nothing is
        scored."""
        written = [list(own) for own in zip(*self._written(texts, name), strict=True)]
        writers = range(len(self._ensemble.members))
        rows = [row for row, own in enumerate(written) if not same_texts([w.text for w in own])]
        asked = [(row, writer) for row in rows for writer in writers]
        log_probs = np.zeros((len(texts), len(writers), len(writers)))
        if asked:
            with self._progress(f"{name}, scores", len(asked) * len(writers)) as advance:
                scores = self._members().log_probs(
                    [texts[row] for row, _ in asked],
                    [written[row][writer].tokens for row, writer in asked],
                    self._limit,
                    advance,
                )
            for (row, writer), own in zip(asked, scores.T, strict=True):
                log_probs[row, :, writer] = own
        return [
            Candidates([each.text for each in own], [len(each.tokens) for each in own], scored)
            for own, scored in zip(written, log_probs, strict=True)
        ]

    def fused(self, texts: Sequence[str], name: str) -> dict[str, list[str]]:
        """Return the greedy answers [N] of each method that fuses at every token, by the method's name."""
        return {method: self._fused_by(method, texts, name) for method in TOKEN_METHODS}

    def served(self, texts: Sequence[str], name: str) -> list[str]:
        """Return the greedy answers [N] by the manifest's own method. Raises FusionError and BundleError."""
        ensemble = self._ensemble
        fused_by = token_method(ensemble)
        if fused_by is not None:
            return self._fused_by(fused_by, texts, name)
        method = answer_method(ensemble)
        if method == "stack":
            return self.ranked(ensemble, texts, name)["stack"]
        written = zip(*self.answers(texts, name), strict=True)
        return [own[choose_answer(ensemble, own, method).winner] for own in written]

    def ranked(self, ensemble: Ensemble, texts: Sequence[str], name: str) -> dict[str, list[str]]:
        """Return the answers [N] that the ranker of the manifest `ensemble` chooses, under the name of its method;
        nothing without a ranker. Raises FusionError and BundleError."""
        ranker = Ranker.from_manifest(ensemble, self._bundle.fusion_path(ensemble))
        if ranker is None:
            return {}
        return {"stack": ranked_texts(ensemble, ranker, self.candidates(texts, name))}

    def _fused_by(self, method: TokenMethod, texts: Sequence[str], name: str) -> list[str]:
        how = [method, *token_weights(self._ensemble, method)]
        with self._progress(f"{name}, {method}", len(texts)) as advance:
            write = partial(self._together, texts, method, advance)
            written = self._kept.of(self._ensemble.members, how, texts, write)
        return [each.text for each in written]

    def _written(self, texts: Sequence[str], name: str) -> list[list[Written]]:
        """Return the members' answers [M][N], with their tokens."""
        members = self._ensemble.members
        with self._progress(name, len(texts) * len(members)) as advance:
            return [
                self._kept.of([member], [], texts, partial(self._alone, member, texts, advance))
                for member in members
            ]

    def _alone(self, member: Member, texts: Sequence[str], advance: Advance) -> list[Written]:
        return self._members().written(member, texts, self._limit, advance)

    def _together(
        self, texts: Sequence[str], method: TokenMethod, advance: Advance
    ) -> list[Written]:
        return self._members().fused_written(texts, method, self._limit, advance)

    def _progress(self, what: str, total: int) -> AbstractContextManager[Advance]:
        return counted(self._watch, f"{self._ensemble.name}: {what}", total)
