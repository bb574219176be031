"""A decoder and its decoder with past: joined, edited as one model, taken apart."""

import pytest
import torch

from nncompress import pipeline
from nncompress.errors import UsageError
from nncompress.ir.edit.apart import take_apart
from nncompress.ir.edit.joined import join
from nncompress.ir.edit.pair import Pair
from nncompress.passes import Context, PruneNodes
from tests.ir.edit.decoders import HEADS, SIZE, UNITS, decoder_pair


def decoded(pair, ids, mask, start):
    """Logits of every token: the first `start` as a prompt, the others one after the other."""
    logits, *caches = pair.prompt(ids[:, :start], mask[:, :start])
    found = [logits]
    for at in range(start, ids.shape[1]):
        logits, *caches = pair.step(ids[:, at : at + 1], mask[:, : at + 1], *caches)
        found.append(logits)
    return torch.cat(found, 1), caches


def texts():
    mask = torch.ones(3, 9)
    mask[0, 2] = mask[1, 6] = 0  # one in the prompt, one among the steps
    return torch.randint(0, 20, (3, 9)), mask


def test_the_same_heads_and_units_go_from_both_and_caches_follow():
    net, prompt, step = decoder_pair()
    pair = Pair(prompt, step)
    removal = PruneNodes(ratios=("net.q=0.5", "net.up=0.25"))
    pruned, steps = pipeline.run(join(pair), [removal], Context())
    smaller = take_apart(pruned, pair)
    gone = {change.where: change.numbers["removed"] for change in steps[0].changes}
    with torch.no_grad():
        for head in gone["net.q"]:
            net.o.weight[:, head * SIZE : (head + 1) * SIZE] = 0
        net.down.weight[:, gone["net.up"]] = 0
        ids, mask = texts()
        expected = net(ids, mask)[0]
        found, caches = decoded(smaller, ids, mask, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert [tuple(cache.shape) for cache in caches] == [(3, HEADS - 1, 9, SIZE)] * 2
    assert smaller.step.inputs[2].shape[1] == HEADS - 1
    for part, source in ((smaller.prompt, prompt), (smaller.step, step)):
        assert part.tensor("net.up.weight").shape[0] == UNITS * 3 // 4
        assert (part.outputs, [i.name for i in part.inputs]) == (
            source.outputs,
            [i.name for i in source.inputs],
        )
        assert [record["pass"] for record in part.history] == ["prune-nodes"]


def test_caches_without_names_are_told_by_their_order():
    (_, *named), (_, *unnamed) = decoder_pair(), decoder_pair(named=False)
    assert Pair(*unnamed).wires == Pair(*named).wires
    assert Pair(*unnamed).length == Pair(*named).length


def test_what_is_no_pair_is_refused_by_what_does_not_fit():
    _, prompt, step = decoder_pair()
    with pytest.raises(UsageError, match="takes no cache"):
        Pair(prompt, prompt)
    with pytest.raises(UsageError, match="no weight of the first"):
        join(Pair(prompt, decoder_pair(seed=1)[2]))
    step.inputs = tuple(step.inputs[:2]) + tuple(prompt.inputs[:1]) * 2
    with pytest.raises(UsageError, match="takes no cache"):
        Pair(prompt, step)


def test_a_mask_of_one_more_than_the_cache_has_that_size_in_examples():
    _, mask, key, _ = decoder_pair()[2].example_inputs()
    assert mask.shape[1] == key.shape[2] + 1
