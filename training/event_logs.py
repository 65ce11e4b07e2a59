"""Writes the losses of training to TensorBoard, MLflow or Weights & Biases, through the callbacks of transformers."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from training.recipe.values import EventLog, RecipeError

PACKAGES: dict[EventLog, Sequence[str]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
EXTRAS: dict[EventLog, str] = {"tensorboard": " (pip install 'choir-serve[logs]')"}


def demand_logs(wanted: Sequence[EventLog]) -> None:
    """Check that a package for each wanted log is installed. Raises RecipeError otherwise."""
    for log in wanted:
        if not any(find_spec(package) for package in PACKAGES[log]):
            raise RecipeError(
                f"report_to: {log} needs the package {PACKAGES[log][0]}, which is not installed; install it"
                f"{EXTRAS.get(log, '')}, or take {log} out of report_to"
            )


def log_callbacks(wanted: Sequence[EventLog], folder: Path | None) -> list[TrainerCallback]:
    """Return the callbacks that have to be told where to write: TensorBoard's, which writes to `folder`. Without one,
    transformers would write it beside the checkpoints, which are deleted."""
    if "tensorboard" not in wanted or folder is None:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder)))]
