"""LoRA: which of its configurations are served, which modules it changes, and the copy that loaders read.

`config.py` checks the configuration, `targets.py` says which modules PEFT would load by it, `modules.py` finds them in
the base, and `tensors.py` checks each tensor with these three. `plain.py` writes the copy.
"""
