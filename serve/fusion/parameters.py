"""The file of fitted parameters that a manifest names: a stacker's or a gate's, or those of a ranker of answers."""

from pathlib import Path
from typing import TypeAlias

from serve.fusion.gate import Gate
from serve.fusion.ranking.ranker import Ranker
from serve.fusion.stack import STACK_FILES, Stack, read_stack
from serve.manifest import FittedModel, Task

Parameters: TypeAlias = Stack | Gate | Ranker

GATE_FILE = "gate.json"


def parameters_file(model: FittedModel) -> str:
    """Returns the file name of a model's fitted parameters in a bundle."""
    return GATE_FILE if model == "gate" else STACK_FILES[model]


def read_parameters(file: Path, model: FittedModel, task: Task) -> Parameters:
    """Returns the fitted parameters in `file`. Raises FusionError if the file does not hold those of `model` for
    `task`."""
    if task == "generation":
        return Ranker.read(file)
    return Gate.read(file) if model == "gate" else read_stack(file, model)
