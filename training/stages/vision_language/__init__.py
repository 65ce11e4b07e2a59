"""Causal bases that read images (Idefics3, LLaVA): a base from nothing, and the prompts of their members."""
