"""Checkpoints larger than memory: a pass on one weight at a time, from shards to new shards.

    run(PASSES["quantize"](mode="weights", weight_bits=4, group_size=64), open_checkpoint("llama/"), "small/")

No architecture is needed, and none is guessed: each weight is a layer of its own, which the pass treats as it
does the layers of a model in memory, by the same code. `run_layerwise` has data run through the network, too,
of which it holds a few weights at a time.
"""

from nncompress.streaming.layerwise import ON_DATA, run_layerwise
from nncompress.streaming.run import run
from nncompress.streaming.shards import Row, Streamed

__all__ = ["ON_DATA", "Row", "Streamed", "run", "run_layerwise"]
