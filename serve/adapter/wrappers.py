"""Leaves out the names that training wrappers put into an adapter's tensor names.

A model may be compiled, sharded or distributed when PEFT saves its adapter. Then the wrappers' names stand in the
middle of the tensors' names. They do not identify a module, so they are left out wherever an adapter is read.
"""

from pathlib import Path

from serve.adapter.folder import WEIGHTS
from serve.tensors import TensorFile

WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_fpw_module",  # FSDP of earlier versions
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning
    }
)
"""Parts of a name that come from a wrapper, never from a model."""
_PEFT = ["base_model", "model"]
_DISTRIBUTED = "module"
"""The name that DistributedDataParallel, DataParallel and DeepSpeed use. A model's own part may have this name too, but
never its first part."""


def unwrapped(name: str) -> str:
    """Returns a tensor's or module's name without the wrappers' names."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == [_DISTRIBUTED]:
        del parts[0]
    while parts[:2] == _PEFT and parts[2:3] == [_DISTRIBUTED]:
        del parts[2]
    return ".".join(parts)


def adapter_tensors(folder: Path) -> TensorFile:
    """Returns an adapter's tensors under their names without wrappers. Raises TensorError if the file is unsound."""
    return TensorFile(folder / WEIGHTS).renamed(unwrapped)
