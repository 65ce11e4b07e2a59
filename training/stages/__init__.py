"""The stages of training: the base's (scratch, pretraining, fine-tuning) and the members' (adapters, distillation).

`fit.py` runs the training loop of all of them; `causal.py` and `encoder.py` make the rows and batches.
"""
