"""Training: from a recipe and labelled data to a bundle.

`pipeline.py` runs all steps in order. The other files beside it are its steps: `preparation.py` (with `labelling.py`)
makes the splits, `base_stages.py` the base, `search.py` finds values by trials, `members.py` trains the adapters.
"""

import os

# OpenMP reads this once, when torch is imported. Threads that spin while they wait slow training several times down as
# soon as anything else wants a core; threads that sleep cost next to nothing on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
