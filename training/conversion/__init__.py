"""Turns adapters of other forms, and fully fine-tuned models, into LoRAs that are served (`choir convert`)."""
