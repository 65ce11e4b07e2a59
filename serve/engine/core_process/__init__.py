"""How vLLM's core process ends: why it did not start, and what requests are told when it dies later."""
