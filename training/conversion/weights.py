"""Collects the tensors of a folder, from whichever files they are in: safetensors, pickles, or shards of either."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from serve.adapter.wrappers import unwrapped
from serve.tensors import TensorError, TensorFile
from training.conversion.errors import ConversionError

Tensors = Mapping[str, torch.Tensor]
ADAPTER, MODEL = "adapter_model", ("model", "pytorch_model")
_MEMORY = 4 << 30
"""Bytes that reading a pickle may take, beside several times the file's size."""
SECONDS = 600


def adapter_tensors(folder: Path, scratch: Path) -> Tensors:
    """Returns the tensors of an adapter by their names without training wrappers. Raises ConversionError."""
    found: dict[str, torch.Tensor] = {}
    for file in _files(folder, [ADAPTER]):
        for name, tensor in _read(file, scratch).items():
            own = unwrapped(name)
            if own in found:
                raise ConversionError(f"{folder.name} holds the tensor {own!r} twice.")
            found[own] = tensor
    return found


def model_folder(folder: Path, scratch: Path) -> Path:
    """Returns a folder with a model's `config.json` and safetensors weights: `folder` itself, or one in `scratch`
    with what was read from pickles. Raises ConversionError."""
    files = _files(folder, MODEL)
    if all(file.suffix == ".safetensors" for file in files):
        return folder
    copy = scratch / "model"
    copy.mkdir()
    (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
    for number, file in enumerate(files, start=1):
        unpickled(file, copy / f"model-{number:05}.safetensors")
    names = {
        name: file.name for file in copy.glob("*.safetensors") for name in TensorFile(file).tensors
    }
    if len(files) == 1:
        (copy / "model-00001.safetensors").rename(copy / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": names}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    return copy


def unpickled(
    file: Path, target: Path, *, memory: int | None = None, seconds: float = SECONDS
) -> None:
    """Writes the tensors of a pickled file as safetensors, read in a process of its own with at most `memory` bytes and
    `seconds`. Raises ConversionError."""
    room = _MEMORY + 4 * file.stat().st_size if memory is None else memory
    command = [sys.executable, "-m", "training.conversion.unpickle"]
    given = [str(file), str(target), str(room), str(int(seconds))]
    try:
        ended = subprocess.run([*command, *given], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ConversionError(
            f"{file.name} could not be read within {seconds:g} seconds, and was given up."
        ) from None
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        reason = said[-1] if said and ended.returncode == 1 else "reading it took too much memory"
        raise ConversionError(f"{file.name} is not read: {reason}.")


def _files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Returns the files with the weights of the first stem that there is: one file, or shards; safetensors before
    pickles. Raises ConversionError if there are none."""
    for stem in stems:
        for end in ("safetensors", "bin"):
            index = folder / f"{stem}.{end}.index.json"
            if index.is_file():
                return _shards(index)
            if (whole := folder / f"{stem}.{end}").is_file():
                return [whole]
            if shards := sorted(folder.glob(f"{stem}-*-of-*.{end}")):
                return shards
    names = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise ConversionError(
        f"{folder} has no weights: expected {names}, the same as .bin, or shards of them."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [index.parent / Path(str(name)).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index.name} is not an index of shards.") from error
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ConversionError(f"{index.name} names {missing.name}, which is missing.")
    return files


def _read(file: Path, scratch: Path) -> Tensors:
    if file.suffix == ".bin":
        target = scratch / f"{file.stem}.safetensors"
        unpickled(file, target)
        file = target
    try:
        TensorFile(file)
    except TensorError as error:
        raise ConversionError(str(error)) from error
    return load_file(file)
