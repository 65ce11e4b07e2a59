"""Boosted trees in LightGBM's text format, read and evaluated with numpy.

LightGBM's own reader ends the whole process when a file is cut off, and trusts every index in it. A server must survive
any file, so what it loads is checked here node by node; LightGBM is only needed to fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.fusion.errors import FusionError
from serve.fusion.members import Floats, Ints

MAX_SPLITS = 4000
"""The most splits on the way to one score: with 77 labels about 2 ms for each row."""
CELLS = 1 << 20
"""Rows x trees that are evaluated together."""

_CATEGORICAL = 1
_MISSING_IS_ZERO = 4
"""Bits of LightGBM's decision types that a stacker's features never need."""


@dataclass(frozen=True)
class Tree:
    """One tree of K splits and K + 1 leaves. A child of at least 0 is a split; a negative child c is the leaf `~c`."""

    feature: Ints
    """[K]"""
    threshold: Floats
    """[K]; a value of at most this goes to the left."""
    left: Ints
    right: Ints
    leaves: Floats
    """[K + 1]"""

    @classmethod
    def parse(cls, block: Mapping[str, str], features: int) -> "Tree":
        """Reads one tree over `features` columns. Raises ValueError, KeyError or FusionError if the block does not hold
        one."""
        leaves = _numbers(block["leaf_value"])
        splits = int(block["num_leaves"]) - 1
        feature, left, right, decisions = (
            _whole(block[key])
            for key in ("split_feature", "left_child", "right_child", "decision_type")
        )
        tree = cls(feature, _numbers(block["threshold"]), left, right, leaves)
        if len(leaves) != splits + 1 or {
            len(each) for each in (feature, tree.threshold, left, right, decisions)
        } != {splits}:
            raise FusionError("a tree has another number of leaves or splits than it says")
        if (decisions & (_CATEGORICAL | _MISSING_IS_ZERO)).any() or block.get(
            "is_linear", "0"
        ) != "0":
            raise FusionError("a tree has splits by category or missing value, or linear leaves")
        if not (np.isfinite(leaves).all() and np.isfinite(tree.threshold).all()):
            raise FusionError("a tree holds values that are not finite")
        tree._check_nodes(features)
        return tree

    def depth(self) -> int:
        """Returns the number of splits on the longest way to a leaf."""
        depths = np.zeros(len(self.feature) + 1, dtype=np.int64)
        for split in reversed(range(len(self.feature))):
            children = (self.left[split], self.right[split])
            depths[split] = 1 + max(depths[child] if child >= 0 else 0 for child in children)
        return int(depths[0])

    def _check_nodes(self, features: int) -> None:
        """Raises FusionError unless every child exists and comes after its parent, so that every walk ends in a
        leaf."""
        parents = np.arange(len(self.feature))
        for child in (self.left, self.right):
            inner = child >= 0
            wrong = np.where(
                inner, (child <= parents) | (child >= len(parents)), ~child >= len(self.leaves)
            )
            if wrong.any():
                raise FusionError("a tree has a child that does not exist")
        if ((self.feature < 0) | (self.feature >= features)).any():
            raise FusionError(f"a tree reads a feature beyond the {features} there are")


class Trees:
    """A sum of trees, with all nodes in one table: a tree's splits, then its leaves. A leaf's children are the leaf
    itself."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        sizes = [len(tree.feature) + len(tree.leaves) for tree in trees]
        self._roots = np.cumsum([0, *sizes])[:-1]
        self._feature = np.zeros(sum(sizes), dtype=np.int64)
        self._threshold = np.zeros(sum(sizes))
        self._value = np.zeros(sum(sizes))
        self._children = np.repeat(np.arange(sum(sizes)), 2)
        """Node 2i goes to the left, 2i + 1 to the right of node i."""
        self._depth = max((tree.depth() for tree in trees), default=0)
        if len(trees) * self._depth > MAX_SPLITS:
            raise FusionError(
                f"{len(trees)} trees of up to {self._depth} splits take more than 2 ms a row; fit fewer or smaller ones"
            )
        for root, size, tree in zip(self._roots, sizes, trees, strict=True):
            splits = len(tree.feature)
            inner, leaves = slice(root, root + splits), slice(root + splits, root + size)
            self._feature[inner], self._threshold[inner] = tree.feature, tree.threshold
            self._value[leaves] = tree.leaves
            for side, child in enumerate((tree.left, tree.right)):
                places = root + np.where(child >= 0, child, splits + ~child)
                self._children[2 * root + side : 2 * (root + splits) : 2] = places

    @classmethod
    def parse(cls, text: str, features: int) -> "Trees":
        """Reads LightGBM's text format for `features` columns. Raises FusionError if the text is unsound."""
        head, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
        try:
            header = _fields(head)
            if "\nend of trees" not in text or len(header["tree_sizes"].split()) != len(blocks):
                raise FusionError("the file is cut off")
            if (
                header["num_class"] != "1"
                or header["num_tree_per_iteration"] != "1"
                or "average_output" in header
            ):
                raise FusionError("they are not one sum of trees")
            if int(header["max_feature_idx"]) + 1 != features:
                raise FusionError(
                    f"they read {int(header['max_feature_idx']) + 1} features, and there are {features}"
                )
            return cls([Tree.parse(_fields(block), features) for block in blocks])
        except FusionError as error:
            raise FusionError(f"The boosted trees cannot be used: {error}.") from None
        except (KeyError, ValueError, OverflowError) as error:
            raise FusionError(
                f"The boosted trees are not in LightGBM's text format: {error}."
            ) from None

    def scores(self, rows: Floats) -> Floats:
        """Returns the sums over the trees [K] for features [K, F]."""
        size = max(1, CELLS // max(1, len(self._roots)))
        parts = [self._walk(rows[start : start + size]) for start in range(0, len(rows), size)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _walk(self, rows: Floats) -> Floats:
        width = rows.shape[1]
        values, begin = rows.ravel(), width * np.arange(len(rows))[:, np.newaxis]
        node = np.broadcast_to(self._roots, (len(rows), len(self._roots)))
        for _ in range(self._depth):
            goes_right = values[begin + self._feature[node]] > self._threshold[node]
            node = self._children[2 * node + goes_right]
        total: Floats = self._value[node].sum(axis=1)
        return total


def _fields(block: str) -> dict[str, str]:
    lines = (line.partition("=") for line in block.split("\n"))
    return {key: value for key, _, value in lines}


def _numbers(text: str) -> Floats:
    return np.array([float(each) for each in text.split()], dtype=np.float64)


def _whole(text: str) -> Ints:
    return np.array([int(each) for each in text.split()], dtype=np.int64)
