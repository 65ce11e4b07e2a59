"""The training loop of all stages, by transformers' Trainer.

It has a one-cycle learning rate, length-grouped batches, bfloat16 if the machine computes it natively, early stopping,
and checkpoints from which a killed run continues to the same weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from training.data.splits import hold_out
from training.event_logs import log_callbacks
from training.progress import StageProgress, Watch
from training.recipe.values import EventLog, RecipeError
from training.stages.curve import Curve, write_curve
from training.stages.dropout import quicken_dropout

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]
Precision = Literal["auto", "float32", "bfloat16"]

IGNORED = -100
"""The label of a position without a loss (PyTorch's cross-entropy)."""


Loss = Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]
"""Computes a model's loss on a batch."""

WEIGHTS_FILE = "trained.safetensors"
STATE_FILE = "trainer_state.json"
"""The file that the Trainer writes last into a checkpoint."""


@dataclass(frozen=True)
class FitOptions:
    epochs: int
    batch_size: int
    learning_rate: float
    """Peak of the one-cycle schedule."""
    seed: int
    patience: int | None = None
    """Stop after this many epochs without a lower loss on held-out rows, and keep the weights of the best epoch."""


LOGGING_STEPS = 20
HELD_OUT = 0.1
"""Share of the rows that is held out for early stopping."""


@dataclass(frozen=True)
class FitRows:
    """Rows to train on, and rows held out for early stopping."""

    train: Dataset
    held_out: Dataset | None
    """None if the stage does not stop early."""


def fit_rows(rows: Dataset, families: Sequence[int], options: FitOptions) -> FitRows:
    """Hold out rows for early stopping if `options` ask for it. `families` [N] stay together.

    Raises RecipeError if all rows are of one family."""
    if options.patience is None:
        return FitRows(rows, None)
    share = max(HELD_OUT, 1 / max(len(rows), 1))
    kept, held = hold_out(families, share, options.seed)
    if not held:
        raise RecipeError(
            f"early_stopping needs held-out rows, but all {len(rows)} rows have the same text or group; leave it out"
        )
    return FitRows(rows.select(kept), rows.select(held))


@dataclass(frozen=True)
class Stage:
    """A stage's title, its folder for checkpoints, its precision, the Watch for its progress, and its event logs."""

    title: str
    folder: Path
    precision: Precision
    watch: Watch
    report_to: Sequence[EventLog] = ()
    events: Path | None = None
    """The folder of TensorBoard's events."""


class LengthGroupedBatches(LengthGroupedSampler):
    """transformers' length-grouped order, with shuffled batches.

    In the library's order, training swings between long and short rows, which often differ in kind."""

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        whole = len(indices) // self.batch_size
        starts = (torch.randperm(whole) * self.batch_size).tolist()
        for start in [*starts, whole * self.batch_size]:
            yield from indices[start : start + self.batch_size]


class OneCycleTrainer(Trainer):
    """Trainer with PyTorch's one-cycle schedule (Smith and Topin 2018), length-grouped batches, and checkpoints that
    hold only the trained weights.

    PEFT's own checkpoints lack the MLP that makes virtual tokens during training."""

    def __init__(self, *args: Any, loss: Loss | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss = loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self._loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self._loss(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

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

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.detach().contiguous() for name, weight in _trained(self.model)}
        save_file(tensors, folder / WEIGHTS_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_weights(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self.model, Path(str(self.state.best_model_checkpoint)))


def fit(
    model: nn.Module,
    features: FitRows,
    collate: Collate,
    options: FitOptions,
    stage: Stage,
    loss: Loss | None = None,
) -> None:
    """Train `model` in place on `features` (columns `input_ids`, `labels`, `length`), by its own loss or by `loss`.

    An interrupted run continues from the last epoch's checkpoint in `stage.folder`. The learning curve is written there
    too.
    """
    checkpoint = last_checkpoint(stage.folder)
    if checkpoint is not None and _had_stopped(checkpoint, options):
        state = _state(checkpoint)
        load_weights(model, Path(state["best_model_checkpoint"]))
        write_curve(stage.folder, Curve.of(stage.title, state["log_history"]))
        model.eval()
        return
    quicken_dropout(model)
    callbacks: list[TrainerCallback] = [StageProgress(stage.watch, stage.title)]
    callbacks += log_callbacks(stage.report_to, stage.events)
    if options.patience is not None:
        callbacks.append(EarlyStoppingCallback(options.patience))
    trainer = OneCycleTrainer(
        model=model,
        args=_arguments(options, stage, len(features.train)),
        train_dataset=features.train,
        eval_dataset=features.held_out,
        data_collator=collate,
        callbacks=callbacks,
        loss=loss,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_curve(stage.folder, Curve.of(stage.title, trainer.state.log_history))
    model.eval()


def _arguments(options: FitOptions, stage: Stage, rows: int) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    stopping: dict[str, Any] = {}
    if options.patience is not None:
        stopping = {
            "eval_strategy": "epoch",
            "per_device_eval_batch_size": options.batch_size,
            "prediction_loss_only": True,
            "label_names": ["labels"],
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
            "restore_callback_states_from_checkpoint": True,
        }
    return TrainingArguments(
        output_dir=str(stage.folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        seed=options.seed,
        use_cpu=on_cpu,
        bf16=in_bfloat16(stage.precision),
        # The sampler needs the column `length`, which the Trainer would remove.
        remove_unused_columns=False,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=_logging_steps(options, rows),
        # TensorBoard's callback is passed by itself, because it has to be told its folder.
        report_to=[each for each in stage.report_to if each != "tensorboard"] or "none",
        run_name=stage.title,
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        **stopping,
    )


def _logging_steps(options: FitOptions, rows: int) -> int:
    """Return after how many steps the loss is logged: 20, or fewer in a short stage, whose curve needs points too."""
    steps = options.epochs * -(-rows // options.batch_size)
    return max(1, min(LOGGING_STEPS, steps // 10))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`, if any. A process may have died while it wrote the last one."""
    found = [path for path in folder.glob("checkpoint-*") if _state(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the trained parameters of `model`."""
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    with torch.no_grad():
        for name, weight in _trained(model):
            weight.copy_(tensors[name])


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _state(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer's state in a checkpoint; empty if the checkpoint is not complete."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def _had_stopped(checkpoint: Path, options: FitOptions) -> bool:
    """Whether the run stopped early and died before its weights were saved."""
    if options.patience is None:
        return False
    stopper = _state(checkpoint)["stateful_callbacks"]["EarlyStoppingCallback"]
    return bool(stopper["attributes"]["early_stopping_patience_counter"] >= options.patience)


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Pad rows of different lengths with `value` on the right, to one int64 tensor [rows, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor(
        [[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64
    )


def pad_tokens(rows: Sequence[Sequence[int]], tokenizer: Any) -> torch.Tensor:
    """Pad rows of token ids to one tensor [rows, longest].

    A tokenizer without a padding token is fine: the attention mask hides the padded places, whatever token is there.
    """
    return pad(rows, tokenizer.pad_token_id or 0)


def padding_mask(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the attention mask of padded rows [rows, longest]: 1 at the row's tokens, 0 at the padding."""
    return pad([[1] * len(row) for row in rows], 0)


def in_bfloat16(precision: Precision) -> bool:
    """Whether a stage of this precision computes in bfloat16 on this machine."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
