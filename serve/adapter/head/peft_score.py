"""The tensor names of PEFT's own classifier head: `score`, a whole module among a LoRA's tensors.

For the task type SEQ_CLS, PEFT trains the head of transformers' `...ForSequenceClassification` beside the LoRA. It
lists both usual names of that head in `modules_to_save`. Under a causal model the head is `score` and reads the last
token's vector, as heads over a causal base do here. Under an encoder it is `classifier`, which reads something else in
each family (BERT: an own layer over the first token) and never the mean over the tokens, so it is not served.
"""

LISTED = frozenset({"classifier", "score"})
"""The names that PEFT lists in `modules_to_save` for every sequence classifier, also those that its model lacks."""
WEIGHT, BIAS = "base_model.model.score.weight", "base_model.model.score.bias"
"""[labels, hidden], and [labels], which transformers' own models do not have."""
SCORE = (WEIGHT, BIAS)
