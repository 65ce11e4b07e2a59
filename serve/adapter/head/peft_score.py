"""The head of PEFT's own sequence classifiers: `score`, a whole module among a LoRA's tensors.

For task type SEQ_CLS PEFT trains the head of transformers' `...ForSequenceClassification` beside the LoRA, and lists
both of its usual names in `modules_to_save`. Under a causal model it is `score` and reads the last token's vector, as
heads over a causal base do here. The `classifier` of an encoder reads something else in each family (BERT: a layer of
its own over the first token), never the mean over the tokens, and is not served.
"""

LISTED = frozenset({"classifier", "score"})
"""What PEFT lists in `modules_to_save` for every sequence classifier, whichever of them its model has."""
WEIGHT, BIAS = "base_model.model.score.weight", "base_model.model.score.bias"
"""[labels, hidden], and [labels], which transformers' own models do not have."""
SCORE = (WEIGHT, BIAS)
