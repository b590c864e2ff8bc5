"""Calibrates a model on your own clips, saves the adapter, and puts a fresh model under it.

    python docs/examples/calibrate_clips.py clips/*.mp4 --out my-adapter

No labels are needed. Half of the clips are fitted on, the other half says what was lost.
"""

import argparse
import sys
from collections.abc import Sequence

from surgery import calibrate, load_adapter, save_adapter, status
from surgery.errors import CalibrationError
from surgery.loading import load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when the promise of the recipe is kept, 1 when it is not (then nothing is saved)."""
    parser = argparse.ArgumentParser(description="Calibrate a model on your own clips.")
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--model", default="facebook/sam2.1-hiera-large", help="as for `surgery track --model`")
    parser.add_argument("--recipe", default="balanced", help="name or YAML file")
    parser.add_argument("--out", default="my-adapter")
    options = parser.parse_args(arguments)

    model = load_model(options.model)
    try:
        report = calibrate(model, options.clips, options.recipe, name=options.model)
    except CalibrationError as error:
        print(error, file=sys.stderr)
        return 1
    report.save(f"{options.out}-report")
    save_adapter(model, options.out)

    # Any model with the same weights can take the adapter, in either host.
    fresh = load_model(options.model)
    load_adapter(fresh, options.out)
    print(status(fresh))
    return 0


if __name__ == "__main__":
    sys.exit(main())
