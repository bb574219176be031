"""One thread for every test: sums are then added up in one order, and two runs give the same bits.

The same in the processes that tests start, and beside other workers of pytest-xdist on the same cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
