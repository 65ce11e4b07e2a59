"""The head that an adapter brings: `check.py` checks it, `scoring.py` applies it.

`layers.py` has what may stand before the linear layer. `peft_head.py` finds the head of a sequence classifier in what
PEFT has saved and in the base.
"""
