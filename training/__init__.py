"""From a recipe and labelled data to a bundle."""

import os

# OpenMP reads this once, when torch is imported. Threads that spin while they wait slow training several times down as
# soon as anything else wants a core; threads that sleep cost next to nothing on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
