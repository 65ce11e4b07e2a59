"""Converts a folder into a LoRA that is served, exactly where that is possible, and says how well otherwise."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from serve.adapter import AdapterError, inspect_adapter
from serve.adapter.classifiers import STEM, is_part
from serve.adapter.folder import CONFIG, HEAD, WEIGHTS, kind_of_config, read_config
from serve.adapter.head.check import has_head
from serve.adapter.lora.config import check_config
from serve.adapter.lora.embeddings import unserved_embedding
from serve.adapter.lora.modules import Modules
from serve.adapter.origin import ORIGIN
from serve.base.folder import BaseShapes
from training.conversion import answers
from training.conversion.errors import ConversionError
from training.conversion.loras import (
    MUTATING,
    Pair,
    adalora_pairs,
    mutated_pairs,
    plain_pairs,
)
from training.conversion.low_rank import low_rank
from training.conversion.models import Models, classifier_labels, head_tensors, labels_of
from training.conversion.plain_lora import copy_plainly_scaled, write_lora
from training.conversion.weights import adapter_tensors, model_folder
from training.progress import Watch, counted

RANK = 64
"""The largest rank of an approximation: what an engine takes by default."""
_ROUNDING = 1e-4
"""A smaller relative error of the weights is rounding."""


@dataclass(frozen=True)
class Conversion:
    """What was made of a folder, and how well it stands for it."""

    kind: str
    """What the folder was, in words."""
    exact: bool
    """Whether the adapter answers as the folder did, rounding aside."""
    rank: int
    weight_error: float | None
    """The norm of what is missed over the norm of the change of all weights; None if weights were copied."""
    answer_difference: float | None
    """The largest difference of probabilities (of a model without a head: of its vectors) on the samples, against
    PEFT's or transformers' own answers; None if no model was loaded."""
    left_out: tuple[str, ...] = ()
    """Parameters that have changed, and that a LoRA cannot change."""


def convert(
    source: Path,
    out: Path,
    watch: Watch,
    *,
    base: Path | None = None,
    rank: int = RANK,
    samples: Sequence[str] = answers.SAMPLES,
) -> Conversion:
    """Writes the adapter `out` from an adapter's folder, or from a model that was tuned as a whole.

    `base` is the base's folder; by default the one that the adapter's configuration names. `out` appears only when it
    has passed the checks of serving. Raises ConversionError."""
    if out.exists():
        raise ConversionError(f"{out} exists already; choose another folder.")
    with (
        tempfile.TemporaryDirectory(prefix="choir-convert-") as name,
        warnings.catch_warnings(action="ignore"),  # PEFT's advice for trainings
    ):
        scratch = Path(name)
        draft = scratch / "adapter"
        draft.mkdir()
        if (source / CONFIG).is_file():
            for name in (HEAD, ORIGIN):  # they stay true of the same change of the same base
                if (source / name).is_file():
                    shutil.copyfile(source / name, draft / name)
            made = _Adapter(source, scratch, base, watch, rank, samples).write(draft)
        elif (source / "config.json").is_file():
            made = _tuned_model(source, scratch, base, watch, rank, samples, draft)
        else:
            raise ConversionError(
                f"{source} is neither an adapter ({CONFIG}) nor a model (config.json)."
            )
        out.mkdir(parents=True)
        for file in draft.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
    return made


class _Adapter:
    """One adapter that is converted."""

    def __init__(
        self,
        source: Path,
        scratch: Path,
        base: Path | None,
        watch: Watch,
        rank: int,
        samples: Sequence[str],
    ) -> None:
        try:
            self._config = read_config(source)
        except AdapterError as error:
            raise ConversionError(str(error)) from error
        self._tensors = adapter_tensors(source, scratch)
        self._base, self._watch, self._rank, self._samples = base, watch, rank, samples
        self._given = scratch / "given"
        """The adapter as it was, in one safetensors file."""
        self._given.mkdir()
        save_file(dict(self._tensors), self._given / WEIGHTS)
        (self._given / CONFIG).write_text(json.dumps(self._config))

    def write(self, draft: Path) -> Conversion:
        """Write the converted adapter into `draft`."""
        config = self._config
        if config.get("alora_invocation_tokens"):
            # Merged or rewritten, it would act before its invocation.
            return self._copied(draft, "alora")
        form = _other_form(config)
        try:
            kind = "lora" if form else kind_of_config(config)
            if kind == "lora":
                check_config(config if form is None else _without_form(config), None)
        except AdapterError:
            return self._merged(draft)
        return self._copied(draft, kind) if form is None else self._rewritten(draft, form)

    def _copied(self, draft: Path, kind: str) -> Conversion:
        """Write the same tensors in one file; a scaling by the root of the rank becomes a plain one."""
        exact = True
        if kind == "lora" and self._config.get("use_rslora"):
            exact = copy_plainly_scaled(self._given, self._config, self._tensors, draft)
        else:
            save_file(dict(self._tensors), draft / WEIGHTS, metadata={"format": "pt"})
            (draft / CONFIG).write_text(json.dumps(self._config, indent=2))
        _check_served(draft, self._found_base(needed=False))
        return Conversion(f"a {kind} adapter", exact, int(self._config.get("r") or 0), None, None)

    def _rewritten(self, draft: Path, form: str) -> Conversion:
        """Write the LoRA that is the same change of weights."""
        models = self._models()
        with counted(self._watch, f"reading the {form}", 1) as advance:
            adapted = models.adapted(self._given)
            if form == "AdaLoRA":
                pairs = adalora_pairs(adapted)
            else:
                lora = LoraConfig.from_pretrained(str(self._given))
                pairs = mutated_pairs(models, lora, plain_pairs(adapted))
            advance(1)
        if not pairs:
            raise ConversionError("No layer has a rank left: there is nothing to convert.")
        head = {name: value for name, value in self._tensors.items() if is_part(name)}
        write_lora(draft, pairs, head, self._config)
        _check_served(draft, models.base)
        rows = answers.sample_ids(models.base, self._samples, models.config.get("vocab_size", 1))
        expected = answers.answers(adapted, rows)
        found = answers.answers(models.adapted(draft), rows)
        return Conversion(
            form,
            answers.equal(expected, found),
            max(len(pair.a) for pair in pairs.values()),
            None,
            answers.difference(expected, found),
        )

    def _merged(self, draft: Path) -> Conversion:
        """Write the LoRA that is nearest to the change of weights by another kind of adapter."""
        models = self._models()
        adapted = models.adapted(self._given)
        rows = answers.sample_ids(models.base, self._samples, models.config.get("vocab_size", 1))
        try:
            expected = answers.answers(adapted, rows)
            merged = adapted.merge_and_unload(safe_merge=True)
        except Exception as error:  # each kind of adapter in PEFT raises its own
            raise ConversionError(
                f"PEFT cannot merge an adapter of this kind into its base, so that no LoRA stands for it: {error}"
            ) from error
        kind = "DoRA" if self._config.get("use_dora") else _other_form(self._config)
        return _approximation(
            kind or str(self._config.get("peft_type")),
            models,
            merged,
            expected,
            rows,
            self._rank,
            self._watch,
            draft,
            self._config,
        )

    def _models(self) -> Models:
        base = self._found_base(needed=True)
        assert base is not None, "it is needed"
        return Models(base, labels_of(self._tensors))

    def _found_base(self, *, needed: bool) -> Path | None:
        named = self._config.get("base_model_name_or_path")
        found = self._base or (Path(named) if isinstance(named, str) else None)
        if found is not None and (found / "config.json").is_file():
            return found
        if not needed and self._base is None:
            return None
        raise ConversionError(
            f"The base {found or ''} is not a folder with a model, and this conversion computes with it: give --base "
            "with a folder, a package or a hub id."
        )


def _tuned_model(
    source: Path,
    scratch: Path,
    base: Path | None,
    watch: Watch,
    rank: int,
    samples: Sequence[str],
    draft: Path,
) -> Conversion:
    """Write the LoRA that is nearest to a full fine-tune of `base`."""
    if base is None:
        raise ConversionError(
            f"{source} is a whole model. Give the base that it was tuned from with --base; a LoRA is the difference of "
            "the two."
        )
    folder = model_folder(source, scratch)
    config = json.loads((source / "config.json").read_bytes())
    models = Models(base, classifier_labels(config))
    tuned = models.plain(folder)
    rows = answers.sample_ids(base, samples, models.config.get("vocab_size", 1))
    expected = answers.answers(tuned, rows)
    return _approximation("a full fine-tune", models, tuned, expected, rows, rank, watch, draft, {})


def _approximation(
    kind: str,
    models: Models,
    after: Any,
    expected: torch.Tensor,
    rows: Sequence[Sequence[int]],
    rank: int,
    watch: Watch,
    draft: Path,
    config: Mapping[str, Any],
) -> Conversion:
    before = models.plain()
    if {n: p.shape for n, p in before.named_parameters()} != {
        n: p.shape for n, p in after.named_parameters()
    }:
        raise ConversionError(
            "The model has other parameters or sizes than its base (such as a resized vocabulary), so that no LoRA "
            "over this base stands for it."
        )
    shapes = BaseShapes.read(models.base)
    by_heads = models.labels is not None or has_head(draft)
    modules = Modules(shapes, "encoder" if by_heads else None)

    def taken(module: str, embedding: bool) -> bool:
        name = modules.name(module)
        return (
            name is not None
            and modules.is_read(name)
            and unserved_embedding(shapes.config, name, embedding=embedding) is None
        )

    def whole(parameter: str) -> bool:
        return models.labels is not None and is_part(f"{STEM}{parameter}")

    total = sum(1 for _ in before.named_parameters(remove_duplicate=False))
    with counted(watch, "decomposing", total) as advance:
        found = low_rank(before, after, rank, taken, whole, advance)
    if not found.pairs:
        raise ConversionError(
            "No layer that takes LoRA has changed: there is nothing to convert."
            if not found.left_out
            else f"Only {found.left_out[0]} and the like have changed, which no LoRA over this base changes."
        )
    pairs = {m: Pair(a, b, 1.0, m in found.embeddings) for m, (a, b) in found.pairs.items()}
    head = head_tensors(after) if models.labels is not None else {}
    write_lora(draft, pairs, head, config)
    _check_served(draft, models.base)
    answered = answers.answers(models.adapted(draft), rows)
    return Conversion(
        kind,
        found.error < _ROUNDING and answers.equal(expected, answered),
        found.rank,
        found.error,
        answers.difference(expected, answered),
        tuple(found.left_out),
    )


def _other_form(config: Mapping[str, Any]) -> str | None:
    """Returns the name of a form that is a LoRA in other words; None if the adapter is of none."""
    if config.get("peft_type") == "ADALORA":
        return "AdaLoRA"
    init = str(config.get("init_lora_weights", True)).lower()
    if config.get("peft_type") == "LORA" and init.startswith(MUTATING):
        return "PiSSA" if init.startswith("pissa") else "OLoRA"
    return None


def _without_form(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of the LoRA that one of these forms becomes. An AdaLoRA's `rank_pattern` says which
    ranks its training has kept, and not how many there are."""
    plain = {**config, "init_lora_weights": True}
    return plain | ({"rank_pattern": {}} if config["peft_type"] == "ADALORA" else {})


def _check_served(draft: Path, base: Path | None) -> None:
    """Raises ConversionError if the adapter is not served."""
    try:
        inspect_adapter(draft, base=base, base_kind="encoder" if has_head(draft) else None)
    except AdapterError as error:
        raise ConversionError(f"What was made of it is not served: {error}") from error
