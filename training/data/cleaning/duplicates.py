"""Checks of rows against each other: duplicates, conflicting labels, and leakage between splits."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from serve.fusion.answers import normalise
from training.data.cleaning.pictures import SimilarImages
from training.data.images import is_image
from training.recipe.values import RecipeError

PIECE = 5
"""Length in characters of the pieces by which texts are compared."""
PERMUTATIONS = 128
SLACK = 0.15
"""A pair is compared exactly if MinHash's estimate is at most this far below the wanted similarity."""
SEED = 1


def exact_duplicates(
    texts: Sequence[str], answers: Sequence[Sequence[str]], origins: Sequence[str]
) -> dict[int, str]:
    """Find rows with the text and answers of an earlier row, apart from case and white space. Returns reasons by
    index."""
    first: dict[tuple[str, ...], int] = {}
    reasons = {}
    for index, key in enumerate(_keys(texts, answers)):
        if key in first:
            reasons[index] = f"equal to {origins[first[key]]}"
        else:
            first[key] = index
    return reasons


def near_duplicates(
    texts: Sequence[str],
    answers: Sequence[Sequence[str]],
    origins: Sequence[str],
    similarity: float,
    images: bool = False,
) -> dict[int, str]:
    """Find rows with the answers of an earlier row that stays, and a text at least as similar as `similarity` (Jaccard,
    pieces of 5 characters). Returns reasons by index.

    MinHash with LSH proposes pairs (Broder 1997), and their exact similarity decides. With `images`, the inputs are
    images, and the bits of their perceptual hashes are compared."""
    index = similar_inputs(similarity, images)
    reasons = {}
    kept: dict[int, tuple[str, ...]] = {}
    keys = [key[1:] for key in _keys(texts, answers)]
    for row, text in enumerate(texts):
        alike = [(other, share) for other, share in index.find(text) if kept[other] == keys[row]]
        if alike:
            other, share = alike[0]
            reasons[row] = f"{share:.2f} similar to {origins[other]}"
        else:
            index.add(row, text)
            kept[row] = keys[row]
    return reasons


def label_conflicts(
    texts: Sequence[str], labels: Sequence[str], majority: bool = False
) -> dict[int, str]:
    """Find rows whose text has another label elsewhere. Returns reasons by index.

    With `majority`, rows with the most frequent label of their text stay, unless several labels are equally
    frequent."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[comparable(text)].append(index)
    reasons = {}
    for rows in groups.values():
        votes = Counter(labels[row] for row in rows)
        if len(votes) == 1:
            continue
        said = ", ".join(f"{label!r} ({count})" for label, count in sorted(votes.items()))
        ranked = votes.most_common(2)
        winner = ranked[0][0] if majority and ranked[0][1] > ranked[1][1] else None
        for row in rows:
            if labels[row] != winner:
                reasons[row] = f"equal texts have the labels {said}"
    return reasons


def leaks(
    texts: Sequence[str],
    others: Sequence[str],
    origins: Sequence[str],
    similarity: float | None = None,
    images: bool = False,
) -> dict[int, str]:
    """Find texts that equal one of `others` or, with `similarity`, are near duplicates of one. Returns reasons by
    index, which name the place of the other text from `origins`. With `images`, the inputs are images."""
    known = {comparable(text): origin for text, origin in zip(others, origins, strict=True)}
    reasons = {}
    for index, text in enumerate(texts):
        if origin := known.get(comparable(text)):
            reasons[index] = f"it has the {'image' if images else 'text'} of {origin}"
    if similarity is not None:
        alike = similar_inputs(similarity, images)
        for number, text in enumerate(others):
            alike.add(number, text)
        for index, text in enumerate(texts):
            if index not in reasons and (found := alike.find(text)):
                reasons[index] = f"{found[0][1]:.2f} similar to {origins[found[0][0]]}"
    return reasons


def similar_inputs(similarity: float, images: bool) -> "SimilarTexts | SimilarImages":
    """Return an empty index that finds texts, or images, of at least this similarity. Raises RecipeError if a package
    for it is not installed."""
    return SimilarImages(similarity) if images else SimilarTexts(similarity)


class SimilarTexts:
    """An index of texts that finds those with at least `similarity` to a given one. Raises RecipeError if datasketch is
    not installed."""

    def __init__(self, similarity: float) -> None:
        try:
            from datasketch import MinHashLSH
        except ImportError:
            raise RecipeError(
                "near duplicates need datasketch; install Choir with the extra `data`"
            ) from None
        self._similarity = similarity
        # The threshold is lower than needed: wrong proposals are checked exactly, but a missed pair is lost.
        self._lsh = MinHashLSH(threshold=max(similarity - SLACK, 0.05), num_perm=PERMUTATIONS)
        self._pieces: dict[int, frozenset[str]] = {}

    def add(self, key: int, text: str) -> None:
        self._pieces[key] = _pieces(text)
        self._lsh.insert(key, _minhash(self._pieces[key]))

    def find(self, text: str) -> list[tuple[int, float]]:
        """Return the keys and similarities of similar texts, in the order of keys."""
        pieces = _pieces(text)
        found = []
        for key in sorted(self._lsh.query(_minhash(pieces))):
            share = _jaccard(pieces, self._pieces[key])
            if share >= self._similarity:
                found.append((key, share))
        return found


def comparable(cell: str) -> str:
    """Return what equal inputs and answers have in common: of a text all but case and white space, of an image all."""
    return cell if is_image(cell) else normalise(cell)


def _keys(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> Iterable[tuple[str, ...]]:
    columns = [list(map(comparable, column)) for column in (texts, *answers)]
    return zip(*columns, strict=True)


def _pieces(text: str) -> frozenset[str]:
    normal = normalise(text)
    return frozenset(normal[n : n + PIECE] for n in range(max(1, len(normal) - PIECE + 1)))


def _minhash(pieces: frozenset[str]) -> Any:
    from datasketch import MinHash

    hashed = MinHash(num_perm=PERMUTATIONS, seed=SEED)
    hashed.update_batch([piece.encode() for piece in sorted(pieces)])
    return hashed


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
