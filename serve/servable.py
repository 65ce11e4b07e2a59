"""Whether an engine can serve a manifest: before its adapters are looked at, and with all its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from serve.adapter import AdapterError, AdapterKind, check_together, inspect_adapter
from serve.base.folder import BaseKind, read_config
from serve.base.two_towers import towers_of
from serve.base.vision_language import reads_images
from serve.digest import folder_digest
from serve.errors import UserError
from serve.fusion.errors import FusionError
from serve.fusion.fuse import Fusion
from serve.fusion.ranking.ranker import Ranker
from serve.fusion.token_weights import token_method
from serve.labels import IMAGE, INVOCATION
from serve.manifest import AdapterRef, Ensemble


class Files(Protocol):
    """The files that manifests name, as a bundle has them. Each raises a UserError for what is missing."""

    @property
    def base_folder(self) -> Path | None:
        """The base's folder; None if the base is not on this machine."""

    def base_kind(self) -> BaseKind:
        """Returns the kind of the base."""

    def adapter_dir(self, ref: AdapterRef) -> Path:
        """Returns the folder of an adapter."""

    def fusion_path(self, ensemble: Ensemble) -> Path | None:
        """Returns the file of an ensemble's fitted parameters; None if it has none."""


def unserved_ensemble(ensemble: Ensemble, kind: BaseKind) -> str | None:
    """Returns why this version of Choir cannot serve the manifest over a base of this kind, in a sentence; None if it
    can."""
    if INVOCATION in ensemble.template.removesuffix(INVOCATION):
        return (
            f"The template {ensemble.template!r} has {INVOCATION} in its middle; an invocation stands at the end, so "
            "that all before it is the base's."
        )
    if kind == "causal" and ensemble.prompts:
        return (
            "'prompts' compares vectors, and a base that writes gives none: leave it out, and say with 'verbalizers' "
            "how labels read."
        )
    if kind == "causal" and ensemble.task in ("multilabel", "regression"):
        return (
            f"The task {ensemble.task} needs adapters with heads: an encoder base, or a causal one whose bundle.json "
            'says "kind": "encoder". This one scores labels that exclude each other.'
        )
    if kind == "causal" and ensemble.fusion.model == "gate":
        return (
            "A gate reads the vector that the base gives of a text, and a base that writes gives none: use an encoder "
            'base, or a causal one whose bundle.json says "kind": "encoder".'
        )
    if ensemble.task == "generation":
        if kind == "encoder":
            return "A base that heads read (an encoder) cannot serve the task generation."
        try:
            token_method(ensemble)
        except FusionError as error:
            return str(error)
    for member in ensemble.members:
        if kind == "encoder" and not member.adapters and not ensemble.prompts:
            return f"Member {member.name!r} is the plain base, and an encoder base has no head to answer with."
    return None


def unserved_over(ensemble: Ensemble, config: Mapping[str, Any]) -> str | None:
    """Returns why a base with this `config.json` cannot read images as the manifest says, in a sentence; None if it
    can, or if the manifest says nothing of images."""
    if ensemble.prompts and towers_of(config) is None:
        return (
            "'prompts' compares images and texts by one space of vectors, so it needs a CLIP or a SigLIP as the base: "
            "leave it out, and give each adapter a head."
        )
    if IMAGE in ensemble.template and not reads_images(config):
        return (
            f"The template {ensemble.template!r} has {IMAGE}, and the base writes about no images."
        )
    return None


def ensemble_problems(
    files: Files, ensemble: Ensemble, *, deep: bool, max_rank: int | None
) -> Iterator[str]:
    """Yields every reason why an engine would refuse the manifest with these files, as sentences.

    With `deep`, also reads every tensor of the adapters and compares their shapes with the base's. `max_rank` is the
    engine's limit."""
    readers: dict[bool, str] = {}
    for member in ensemble.members:
        kinds: list[AdapterKind] = []
        for ref in member.adapters:
            try:
                folder = files.adapter_dir(ref)
                found = folder_digest(folder)
                if found != ref.digest:
                    yield (
                        f"adapters/{ref.adapter}/{folder.name} has the digest {found}, but {ensemble.id} names "
                        f"{ref.digest}."
                    )
                elif deep:
                    info = inspect_adapter(
                        folder,
                        base=files.base_folder,
                        max_rank=max_rank,
                        base_kind=files.base_kind(),
                        head_rows=ensemble.head_rows,
                    )
                    kinds.append(info.kind)
                    check_together(kinds)
                    if info.head is not None:
                        readers.setdefault(info.reads_pairs, member.name)
            except AdapterError as error:
                yield f"{ensemble.id}, member {member.name}, adapter {ref.adapter}: {error}"
            except UserError as error:
                yield str(error)
    if len(readers) > 1:
        yield (
            f"{ensemble.id}: the head of member {readers[True]} reads pairs and that of {readers[False]} single texts, "
            "so no input could be answered by both."
        )
    try:
        unserved = unserved_ensemble(ensemble, files.base_kind())
    except UserError:
        unserved = None  # the base's own problem
    if unserved is not None:
        yield f"{ensemble.id}: {unserved}"
    elif files.base_folder is not None:
        try:
            reason = unserved_over(ensemble, read_config(files.base_folder))
        except UserError:
            reason = None  # the base's own problem
        if reason is not None:
            yield f"{ensemble.id}: {reason}"
    try:
        parameters = files.fusion_path(ensemble)
        if ensemble.task == "generation":
            Ranker.from_manifest(ensemble, parameters)
        elif parameters is not None:
            Fusion.from_manifest(ensemble, parameters)
    except UserError as error:
        yield f"{ensemble.id}: {error}"
