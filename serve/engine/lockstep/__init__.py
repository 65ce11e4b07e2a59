"""Lockstep groups: sibling requests, one for each member, that write one text token by token.

`client.py` turns a request into a group and returns one stream. `scheduler.py` keeps the siblings of a group
(`group.py`) in step, `room.py` measures what the engine has room for, and `outputs.py` merges the siblings' outputs.
`processor.py` fuses their logits and chooses the token that all of them get. `logprobs.py` carries the fused
log-probabilities (`logprob_rows.py`) to the client, and `prompt_rows.py` makes those of the prompt. `sibling_spec.py`
is what a request says about its group. The mathematics are in `serve.fusion.tokens`.
"""
