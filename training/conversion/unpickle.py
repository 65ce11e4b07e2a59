"""Reads a pickled file of tensors, in a process of its own that runs as `python -m training.conversion.unpickle`.

torch reads the file with `weights_only`, which builds tensors and plain values and calls nothing else. A file may still
name more memory than there is, or never end. So the process has limits, and ends with its work: what comes out is a
safetensors file."""

import resource
import sys

_SPARE = 60
"""Seconds of processor time beyond the parent's patience, after which the system ends the process."""


def main() -> None:
    """Arguments: the file, the target, bytes of memory, and seconds."""
    source, target, memory, seconds = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + _SPARE, int(seconds) + _SPARE))
    import torch
    from safetensors.torch import save_file

    # torch itself takes many gigabytes of addresses, so that only what comes after it is limited.
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail in any way
        _end(f"it holds more than tensors, or is damaged ({type(error).__name__})")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        _end("it holds no tensors by name")
    odd = next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if odd is not None:
        _end(f"{odd[:80]!r} in it is no tensor")
    try:
        save_file({name: value.clone().contiguous() for name, value in found.items()}, target)
    except (MemoryError, RuntimeError):
        _end("its tensors take more memory than the file's size explains")


def _end(reason: str) -> None:
    print(reason, file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
