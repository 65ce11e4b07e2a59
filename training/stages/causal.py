"""Rows and batches of members that answer by text. Only the tokens of the label or the reply have a loss."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset

from serve.labels import LabelError, LabelPath, encoder, fill, label_paths, label_texts
from serve.prompting.reader import PromptReader
from training.recipe import EnsembleRecipe, RecipeError
from training.stages.fit import IGNORED, Collate, pad, pad_tokens, padding_mask


def member_features(
    rows: Dataset,
    text: str,
    ensemble: EnsembleRecipe,
    tokenizer: Any,
    limit: int,
    invocation: str | None = None,
) -> Dataset:
    """Turn rows into features: `input_ids` of prompt and answer, `labels` on the answer only, and `length`.

    Rows longer than `limit` tokens lose the beginning of the prompt. A reply ends with an end token; a label does not,
    because its score has none. `invocation`: the text at the prompt's end from which an activated LoRA acts. Raises
    RecipeError if a label cannot be scored or there is no end token.
    """
    path_of = _paths(ensemble, tokenizer, invocation)
    answers, ending = written_answers(rows, ensemble, tokenizer)
    features = []
    for message, answer in zip(rows[text], answers, strict=True):
        try:
            path = path_of(message, answer)
        except LabelError as error:
            raise RecipeError(f"ensemble {ensemble.name!r}, text {message!r}: {error}") from None
        answered = [*path.tokens, *ending]
        ids = [*path.context, *answered]
        labels = [IGNORED] * len(path.context) + answered
        features.append(
            {"input_ids": ids[-limit:], "labels": labels[-limit:], "length": min(len(ids), limit)}
        )
    return Dataset.from_list(features)


def _paths(
    ensemble: EnsembleRecipe, tokenizer: Any, invocation: str | None
) -> Callable[[str, str], LabelPath]:
    """Return what gives an answer's path after a message's prompt. It raises LabelError."""
    encode = encoder(tokenizer)

    def plain(message: str, answer: str) -> LabelPath:
        [path] = label_paths(encode, fill(ensemble.template, message), [answer])
        return path

    if invocation is None:
        return plain
    reader = PromptReader(tokenizer)
    begins = reader.invocation_of_text(invocation)
    head = reader.head(ensemble.template, begins)

    def activated(message: str, answer: str) -> LabelPath:
        [[path]] = reader.paths([fill(head, message)], [answer], begins)
        if begins.start_in([*path.context, *path.tokens]) != len(path.context) - len(begins.tokens):
            raise LabelError(
                f"The answer {answer!r} holds the invocation {begins.text!r}, so the adapter would begin in it: "
                "choose an invocation that no answer has."
            )
        return path

    return activated


def collate_for(tokenizer: Any) -> Collate:
    """Return the function that makes batches, padded on the right: `input_ids`, `attention_mask` and `labels`, each
    [batch, longest]."""

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad_tokens(ids, tokenizer),
            "attention_mask": padding_mask(ids),
            "labels": pad([feature["labels"] for feature in features], IGNORED),
        }

    return collate


def end_token(tokenizer: Any, where: str) -> int:
    """Return the id of the token that ends a text. Raises RecipeError, which begins with `where`, if there is none."""
    token: int | None = tokenizer.eos_token_id
    if token is None:
        raise RecipeError(
            f"{where}: the base's tokenizer has no end token (eos_token), so the model cannot learn where a text ends; "
            "set eos_token in the base's tokenizer_config.json"
        )
    return token


def written_answers(
    rows: Dataset, ensemble: EnsembleRecipe, tokenizer: Any
) -> tuple[list[str], list[int]]:
    """Return the text that follows each row's prompt, and the token ids that end it. Raises RecipeError if there is no
    end token."""
    if ensemble.task == "generation":
        ending = [end_token(tokenizer, f"ensemble {ensemble.name!r}")]
        return [f" {reply.strip()}" for reply in rows[ensemble.target]], ending
    names = list(rows[ensemble.label])
    return label_texts(names, ensemble.verbalizers), []
