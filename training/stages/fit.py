"""One fine-tuning run through transformers' Trainer.

One-cycle learning rate, length-grouped batches, bfloat16 where the machine computes it, resumable.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from rich.progress import Progress
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from training.progress import StageProgress

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]
Precision = Literal["auto", "float32", "bfloat16"]

IGNORED = -100
"""Label of a position without loss (PyTorch's cross entropy)."""


@dataclass(frozen=True)
class FitOptions:
    epochs: int
    batch_size: int
    learning_rate: float
    """Peak of the one-cycle schedule."""
    seed: int


@dataclass(frozen=True)
class Stage:
    """Where a run keeps its checkpoints, how it computes, and how it shows its progress."""

    title: str
    folder: Path
    precision: Precision
    bars: Progress


class LengthGroupedBatches(LengthGroupedSampler):
    """transformers' length-grouped order with its batches shuffled.

    Sorted batches make training swing between long and short rows, which are often of different kinds."""

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        whole = len(indices) // self.batch_size
        starts = (torch.randperm(whole) * self.batch_size).tolist()
        for start in [*starts, whole * self.batch_size]:
            yield from indices[start : start + self.batch_size]


class OneCycleTrainer(Trainer):
    """Trainer with PyTorch's one-cycle schedule (Smith and Topin 2018) and length-grouped batches."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedBatches(self.args.train_batch_size, lengths=list(rows["length"]))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        self.lr_scheduler: LRScheduler = OneCycleLR(
            optimizer or self.optimizer,
            max_lr=self.args.learning_rate,
            total_steps=num_training_steps,
        )
        return self.lr_scheduler


def fit(
    model: nn.Module, features: Dataset, collate: Collate, options: FitOptions, stage: Stage
) -> None:
    """Train `model` in place on `features` (columns `input_ids`, `labels`, `length`).

    A run that was interrupted goes on from the last epoch's checkpoint in `stage.folder`.
    """
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(stage.folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        seed=options.seed,
        use_cpu=on_cpu,
        bf16=_bf16(stage.precision),
        # The sampler reads `length` from the columns that are left, so none may be removed before it does.
        remove_unused_columns=False,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=20,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    trainer = OneCycleTrainer(
        model=model,
        args=arguments,
        train_dataset=features,
        data_collator=collate,
        callbacks=[StageProgress(stage.bars, stage.title)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = get_last_checkpoint(str(stage.folder)) if stage.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    model.eval()


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of different lengths as one int64 tensor [rows, longest], filled on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor(
        [[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64
    )


def padding_mask(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """1 where `pad` puts a token of the row, 0 where it fills: [rows, longest]."""
    return pad([[1] * len(row) for row in rows], 0)


def _bf16(precision: Precision) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
