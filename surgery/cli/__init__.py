"""The command line. Progress and results are ours: the hosts' own bars and notices would break both."""

import os
import sys

# Read by the hosts' libraries when they are imported, hence here, before any of them is.
os.environ.setdefault("TQDM_DISABLE", "1")


def run() -> None:
    """The `surgery` command; one line and exit code 1 where the libraries it is made with are missing."""
    from surgery.errors import MissingLibraryError
    from surgery.missing import require

    try:
        require("click", "rich")
    except MissingLibraryError as error:
        sys.exit(f"error: {error}")
    from surgery.cli.main import main

    main()
