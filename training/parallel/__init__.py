"""Several members at once with Ray: the only part of training that imports it.

Whoever wants it loaded imports `training.parallel.executor`, after Ray's options are in the environment, which Ray reads
when it is imported.
"""
