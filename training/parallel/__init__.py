"""Several members at once with Ray: the only part of training that imports it.

Import `training.parallel.ray_executor` after Ray's options are in the environment: Ray reads them
when it is imported.
"""
