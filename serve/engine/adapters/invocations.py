"""The prompts of members whose adapter acts from an invocation on."""

from collections.abc import Sequence

from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import PrepareError, Text
from serve.labels import LabelError, fill, label_texts
from serve.manifest import Ensemble
from serve.prompting.invocation import Invocation
from serve.prompting.reader import PromptReader


def refuse_invocations(
    ensemble: Ensemble, members: Sequence[MemberAdapters], reader: PromptReader
) -> None:
    """Raises PrepareError if the ensemble's template does not end in the invocation of each of its members, or if its
    labels cannot follow one."""
    for member, adapters in zip(ensemble.members, members, strict=True):
        if adapters.invocation is None:
            continue
        try:
            reader.head(ensemble.template, adapters.invocation)
            if ensemble.labels:
                texts = label_texts(ensemble.labels, ensemble.verbalizers)
                reader.label_tokens(texts, adapters.invocation)
        except LabelError as error:
            raise PrepareError(f"Member {member.name!r}: {error}") from error


def heads_of(
    ensemble: Ensemble,
    inputs: Sequence[Text],
    members: Sequence[MemberAdapters],
    reader: PromptReader,
    placeholder: str = "",
) -> dict[Invocation, list[str]]:
    """Returns the inputs' prompts up to the invocation, for each invocation that a member has. `placeholder`: what
    stands for an image."""
    heads = {}
    for member in members:
        if member.invocation is not None:
            template = reader.head(ensemble.template, member.invocation)
            heads[member.invocation] = [
                fill(template, each.text, each.text_pair, placeholder if each.image else "")
                for each in inputs
            ]
    return heads
