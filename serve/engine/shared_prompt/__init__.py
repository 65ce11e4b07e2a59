"""Activated LoRAs in vLLM: members that share the keys and values of their prompts with each other and with the base.

`activation.py` is what a request says about its invocation. `hooks.py` makes vLLM's workers leave the tokens before it
to the base, and its prefix cache find these tokens for everyone. `scheduler.py` makes requests wait for a prompt that
another one is computing, and counts what was computed (`computed.py`). `blocks.py` says which blocks the requests of a
group share.
"""
