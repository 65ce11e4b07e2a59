"""Training on a Ray cluster, several members at once. Only this part of training imports Ray.

Set Ray's options in the environment before you import `training.parallel.ray_executor`: Ray reads them on import.
"""
