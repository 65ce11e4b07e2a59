"""The prompt that each member reads. That of an activated LoRA ends in the adapter's own invocation."""
