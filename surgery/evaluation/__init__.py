"""Quality against ground truth: region similarity J and boundary accuracy F, on data sets as they are published."""

from surgery.evaluation.dataset import Annotated as Annotated
from surgery.evaluation.dataset import Sequence as Sequence
from surgery.evaluation.layouts import DATASETS as DATASETS
from surgery.evaluation.layouts import open_dataset as open_dataset
from surgery.evaluation.metrics import boundary as boundary
from surgery.evaluation.metrics import boundary_f as boundary_f
from surgery.evaluation.metrics import region_j as region_j
from surgery.evaluation.metrics import statistics as statistics
from surgery.evaluation.run import evaluate as evaluate
from surgery.evaluation.scores import Scores as Scores
from surgery.evaluation.scoring import CONVENTIONS as CONVENTIONS
