"""Soft adapters: virtual tokens before the prompt, as prefix tuning and prompt tuning learn them.

vLLM knows neither. `adapter.py` is the word that a request carries, `salt.py` what keeps its cache apart; `store.py`
holds the tensors in each worker; `connector.py` writes a prefix's keys and values into vLLM's paged cache; `inputs.py`
puts a prompt adapter's vectors among the input embeddings; `scheduler.py` ends requests that arrive without their salt,
or whose adapter a worker lacks.
"""
