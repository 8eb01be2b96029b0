"""The computing half of the stand-in CANN runtime: operator calls arrive from C and run as torch functions on the CPU.

The C half imports this package on its first operator call; a test may import it earlier to count or to read errors.
    with fake_cann.count() as seen: ...     # seen.launches, seen.synchronizations, ... of the block
    fake_cann.launched                      # Counter of operator names since the last launched.clear()
    with fake_cann.traced() as lines: ...   # every operator with its dtypes and shapes
    fake_cann.graph_sizes()                 # operators and copies in each live graph
"""

from . import attention, elementwise, gradients, indexing, layers, reductions, shaping
from .bridge import Counters, connect, count, counters, graph_sizes, launched, live_handles, traced

__all__ = ["Counters", "count", "counters", "graph_sizes", "launched", "live_handles", "traced"]

KERNELS = {}
for _module in (attention, elementwise, gradients, indexing, layers, reductions, shaping):
    KERNELS.update(_module.table.kernels)
connect(KERNELS)
