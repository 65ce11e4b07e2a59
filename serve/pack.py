"""Makes a bundle from a base and PEFT folders."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from serve.adapter import has_head
from serve.base.folder import BaseKind
from serve.bundle import BaseSpec, Bundle, BundleError
from serve.manifest import Ensemble, Member, adapter_name, explain

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def pack(
    base: str,
    adapters: Mapping[str, Path | Sequence[Path]],
    out: Path,
    *,
    task: str,
    fusion: str,
    labels: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    template: str = "{text}",
    verbalizers: Mapping[str, str] | None = None,
    prompts: Sequence[str] = (),
    name: str = "ensemble",
    revision: str | None = None,
    record_sources: bool = False,
) -> Bundle:
    """Writes the bundle `out` with version 1 of one ensemble.

    `adapters` maps each member to one adapter, or to a LoRA and a prefix or prompt adapter. With `prompts`, a base with
    two towers classifies without heads; without adapters, it does so alone, as the member `base`. The base is
    referenced (a folder by its absolute path, anything else as a hub id); the adapters are copied. If every member has
    a head, heads read a causal base too. With `record_sources`, the bundle knows which folders its adapters came from.
    `out` appears only when everything in it was verified. Raises BundleError if it is refused.
    """
    folders = [[given] if isinstance(given, Path) else list(given) for given in adapters.values()]
    heads = bool(folders) and all(any(has_head(folder) for folder in each) for each in folders)
    spec = _base_spec(base, revision, "encoder" if heads else None)
    if fusion == "stack":
        raise BundleError(
            "A stacker has to be fitted, which 'choir train' does; "
            "pack with average, weighted_average or vote."
        )
    if not adapters and not prompts:
        raise BundleError("There is nothing to pack: give at least one adapter as NAME=DIR.")
    unknown = sorted(set(weights or {}) - set(adapters))
    if unknown:
        raise BundleError(f"The weight of {unknown[0]!r} belongs to none of {', '.join(adapters)}.")
    if out.exists():
        raise BundleError(f"{out} exists already; choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=out.parent) as scratch:
        draft = Bundle.create(Path(scratch) / "bundle", spec)
        members = [
            Member(
                name=member,
                weight=(weights or {}).get(member),
                adapters=[
                    draft.add_adapter(adapter_name(member, place), folder)
                    for place, folder in enumerate(each)
                ],
            )
            for member, each in zip(adapters, folders, strict=True)
        ] or [Member(name="base", adapters=[])]
        try:
            ensemble = Ensemble.model_validate(
                {
                    "format": 1,
                    "name": name,
                    "version": 1,
                    "task": task,
                    "members": members,
                    "fusion": {"method": fusion},
                    "labels": None if labels is None else list(labels),
                    "template": template,
                    "verbalizers": dict(verbalizers or {}),
                    "prompts": list(prompts),
                }
            )
        except ValidationError as error:
            raise BundleError(f"These adapters make no ensemble: {explain(error)}.") from error
        draft.write_ensemble(ensemble)
        if record_sources:
            for member, each in zip(ensemble.members, folders, strict=True):
                for ref, folder in zip(member.adapters, each, strict=True):
                    draft.record_source(ref, folder)
        problems = draft.verify()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise BundleError(problems[0] + more)
        shutil.move(draft.path, out)
    return Bundle.open(out)


def _base_spec(base: str, revision: str | None, kind: BaseKind | None) -> BaseSpec:
    folder = Path(base).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise BundleError(f"{base} is a folder and has no revisions; leave the revision out.")
        return BaseSpec(path=str(folder.resolve()), kind=kind)
    if not _HUB_ID.fullmatch(base) or base.startswith("."):
        raise BundleError(f"The base {base} is neither a folder nor a hub id such as org/name.")
    return BaseSpec(id=base, revision=revision, kind=kind)
