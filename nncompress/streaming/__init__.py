"""Checkpoints larger than memory: a pass on one weight at a time, from shards to new shards.

    run(PASSES["quantize"](mode="weights", weight_bits=4, group_size=64), open_checkpoint("llama/"), "small/")

No architecture is needed, and none is guessed: each weight is a layer of its own, which the pass treats as it
does the layers of a model in memory, by the same code.
"""

from nncompress.streaming.run import Row, Streamed, run

__all__ = ["Row", "Streamed", "run"]
