"""Names that training wrappers leave in an adapter's tensors, and how they are read.

A model that was compiled, sharded or made distributed before PEFT saved its adapter has the wrappers' names in the
middle of its tensors' names. They say nothing of the module, so they are left out wherever an adapter is read.
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
"""Parts of a name that no model has itself."""
_PEFT = ["base_model", "model"]
_DISTRIBUTED = "module"
"""DistributedDataParallel, DataParallel and DeepSpeed. A model's own part may be called so too, but never its first."""


def unwrapped(name: str) -> str:
    """A tensor's or module's name as it would be without wrappers."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == [_DISTRIBUTED]:
        del parts[0]
    while parts[:2] == _PEFT and parts[2:3] == [_DISTRIBUTED]:
        del parts[2]
    return ".".join(parts)


def adapter_tensors(folder: Path) -> TensorFile:
    """An adapter's tensors by their names without wrappers. Raises TensorError."""
    return TensorFile(folder / WEIGHTS).renamed(unwrapped)
