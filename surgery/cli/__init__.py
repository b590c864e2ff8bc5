"""The command line. Progress and results are ours: the hosts' own bars and notices would break both."""

import os

# Read by the hosts' libraries when they are imported, hence here, before any of them is.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
