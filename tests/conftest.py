"""One thread for every test: sums are then added up in one order, and two runs give the same bits."""

import torch

torch.set_num_threads(1)
