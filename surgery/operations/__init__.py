"""The operations that ship, in the order in which they are listed. Importing this makes them known to recipes."""

from surgery.core.operation import register
from surgery.operations.compile import CompileMode, CompileParts
from surgery.operations.cuda_graphs import CudaGraphs
from surgery.operations.exact_savings import ExactSavings
from surgery.operations.memory_retrieval import SparseMemoryRetrieval
from surgery.operations.precision import Precision
from surgery.operations.quantize import Quantize
from surgery.operations.query_routing import SparseQueryRouting
from surgery.operations.segment_everything import SegmentEverything
from surgery.operations.trim_caches import TrimCaches
from surgery.operations.window_routing import SparseWindowRouting
from surgery.operations.window_routing.settings import (
    ObjectSettings,
    RefreshSettings,
    ShortcutSettings,
    SkippedSettings,
    StageSettings,
)

__all__ = [
    "CompileMode",
    "CompileParts",
    "CudaGraphs",
    "ExactSavings",
    "ObjectSettings",
    "Precision",
    "Quantize",
    "RefreshSettings",
    "SegmentEverything",
    "ShortcutSettings",
    "SkippedSettings",
    "SparseMemoryRetrieval",
    "SparseQueryRouting",
    "SparseWindowRouting",
    "StageSettings",
    "TrimCaches",
]

for _kind in (
    SparseWindowRouting,
    SparseMemoryRetrieval,
    SparseQueryRouting,
    Precision,
    Quantize,
    TrimCaches,
    CompileParts,
    CudaGraphs,
    ExactSavings,
    SegmentEverything,
):
    register(_kind)
