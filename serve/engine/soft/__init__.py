"""Soft adapters: virtual tokens before the prompt, as prefix tuning and prompt tuning learn them.

vLLM supports neither. `adapter.py` is what a request says about its soft adapter, and `salt.py` separates its cache
from others'. `store.py` holds the tensors in each worker. `connector.py` writes a prefix's keys and values into vLLM's
paged cache. `inputs.py` puts a prompt adapter's vectors among the input embeddings. `scheduler.py` ends requests that
arrive without their salt, or whose adapter a worker lacks.
"""
