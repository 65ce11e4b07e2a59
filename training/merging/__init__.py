"""Merges the LoRA members of an ensemble into one adapter: PEFT's merges in weight space, and soups (`choir merge`)."""
