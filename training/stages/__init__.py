"""The stages that compute: a base from scratch, LoRA members on a causal base, LoRA members on an encoder."""
