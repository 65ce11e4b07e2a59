"""Fuses the members' next-token distributions, in torch and independently of an engine.

The engine calls this with its logits, and offline evaluation with PEFT's. Shapes everywhere: G groups (one for each
fused answer), N members, V tokens of the vocabulary. Start at `step.py`; each other file holds one part of a step. The
rest of `serve.fusion` stays without torch, so import from here only where torch is loaded anyway.
"""
