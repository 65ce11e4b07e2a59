"""Lockstep groups: sibling requests, one a member, that write one text token by token.

`client.py` fans a request out into a group and returns one stream; `scheduler.py` keeps the siblings in step;
`processor.py` fuses their logits and chooses the token that all of them get; `logprobs.py` carries the fused
log-probabilities back. `sibling_spec.py` is what they pass on. The mathematics are in `serve.fusion.tokens`.
"""
