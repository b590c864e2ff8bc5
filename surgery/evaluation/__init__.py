"""Quality against ground truth: region similarity J and boundary accuracy F."""

from surgery.evaluation.metrics import boundary, boundary_f, region_j

__all__ = ["boundary", "boundary_f", "region_j"]
