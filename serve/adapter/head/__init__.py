"""The head that an adapter brings: `check.py` checks it, `scoring.py` applies it.

`peft_score.py` names the tensors of the head that PEFT stores itself.
"""
