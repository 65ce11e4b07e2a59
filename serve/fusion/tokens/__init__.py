"""Fusing members' next-token distributions, in torch and without a word of an engine.

The engine calls this on its logits, and whoever evaluates offline on PEFT's. Shapes everywhere: G groups (one a user's
text), N members, V tokens of the vocabulary. `step.py` is the way in; the other files hold one part of a step each.
`serve.fusion` itself stays without torch, so import from here only where torch is there anyway.
"""
