import pytest
import torch

from nncompress.ir.formats.packed import (
    PARTS,
    bits_for,
    distinct_values,
    from_bits,
    restore,
    smallest,
    to_bits,
)


def of_values(shape, distinct, seed=0):
    generator = torch.Generator().manual_seed(seed)
    book = torch.randn(distinct, generator=generator)
    return book[torch.randint(0, distinct, shape, generator=generator)]


def sparse(tensor, zeros, seed=1):
    kept = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) >= zeros
    return tensor.where(kept, torch.zeros((), dtype=tensor.dtype))


def random(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored_bytes(parts):
    return sum(t.numel() * t.element_size() for t in parts.values())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_bits_there_and_back(bits, count):
    indices = torch.randint(0, 2**bits, (count,))
    stored = to_bits(indices, bits)
    assert len(stored) == -(-count * bits // 8)
    assert torch.equal(from_bits(stored, bits, count), indices)


CASES = {
    "few values": (of_values((61, 43), 16), {"codes", "codebook"}, 61 * 43 / 2 + 65),
    "two values": (of_values((61, 43), 2), {"codes", "codebook"}, 61 * 43 / 8 + 9),
    "many zeros": (sparse(random(64, 33, 3), 0.75), {"bitmap", "values"}, 64 * 99 * 1.16),
    "both": (sparse(of_values((64, 33, 3), 15), 0.75), {"bitmap", "codes", "codebook"}, 64 * 99 / 4 + 120),
    "half": (sparse(random(99, 99), 0.9).half(), {"bitmap", "values"}, 99 * 99 * 0.34),
    "one value": (torch.full((40, 5), 0.5), {"codes", "codebook16"}, 27),
    "no value but zero": (torch.zeros(40, 5), {"codes", "codebook16"}, 27),
    "few short values": (of_values((61, 43), 16).half().float(), {"codes", "codebook16"}, 61 * 43 / 2 + 33),
    "both, short": (
        sparse(of_values((64, 33, 3), 15), 0.75).half().float(),
        {"bitmap", "codes", "codebook16"},
        64 * 99 / 4 + 90,
    ),
    "few values beyond half": (of_values((61, 43), 16) * 2.0**20, {"codes", "codebook"}, 61 * 43 / 2 + 65),
    "double": (of_values((61, 43), 16).half().double(), {"codes", "codebook"}, 61 * 43 / 2 + 129),
}


@pytest.mark.parametrize("case", CASES)
def test_smallest_form_keeps_every_value(case):
    tensor, parts, most = CASES[case]
    found = smallest(tensor)
    assert set(found) == parts <= set(PARTS)
    assert torch.equal(restore(found, tuple(tensor.shape)), tensor)
    assert restore(found, tuple(tensor.shape)).dtype == tensor.dtype
    assert stored_bytes(found) <= most


@pytest.mark.parametrize("axis", [0, 1])
def test_a_codebook_for_every_channel(axis):
    rows = torch.stack([of_values((200,), 3 + channel % 2, seed=channel) for channel in range(70)])
    tensor = rows.reshape(70, 20, 10).movedim(0, axis).contiguous()
    found = smallest(tensor)
    assert set(found) == {"codes", "codebook", "offsets"}
    assert torch.equal(restore(found, tuple(tensor.shape)), tensor)
    assert stored_bytes(found) == 70 * 200 / 4 + 70 * 4 * 4 + 70 * 4


def test_short_codebooks_per_channel():
    rows = torch.stack([of_values((200,), 4, seed=channel) for channel in range(70)]).half().float()
    found = smallest(rows)
    assert set(found) == {"codes", "codebook16", "offsets"}
    assert torch.equal(restore(found, (70, 200)), rows)
    assert restore(found, (70, 200)).dtype == torch.float32
    assert stored_bytes(found) == 70 * 200 / 4 + 70 * 4 * 2 + 70 * 4
    assert set(smallest(rows, per_op=600)) == {"codes", "codebook", "offsets"}  # the cast takes more


def test_what_does_not_pay_is_left():
    assert smallest(torch.randn(50, 50)) is None
    assert smallest(sparse(torch.randn(50, 50), 0.02)) is None
    assert smallest(of_values((10, 10), 4), overhead=1000) is None
    assert smallest(torch.tensor([1.0])) is None
    assert smallest(torch.arange(100)) is None
    with_nan = torch.where(torch.rand(50, 50) < 0.9, 0.0, torch.nan)
    assert torch.equal(restore(smallest(with_nan), (50, 50)).isnan(), with_nan.isnan())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_sign_of_a_zero_and_what_is_no_number_come_back_bit_for_bit(dtype):
    odd = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for share in (0.0, 0.9):
        tensor = odd[torch.randint(0, 7, (80, 80))].where(torch.rand(80, 80) >= share, 0.0).to(dtype)
        found = smallest(tensor)
        assert stored_bytes(found) < tensor.numel() * tensor.element_size() / 2
        assert torch.equal(restore(found, (80, 80)).view(integers), tensor.view(integers))


def test_few_distinct_values_are_found_by_all_of_them():
    assert distinct_values(torch.randn(500, 500)) is None
    assert distinct_values(torch.tensor([1.0, float("nan")])) is None
    assert distinct_values(torch.tensor([2, 1])) is None
    late = torch.zeros(100_000)  # values that a sample would miss
    late[1:400] = torch.arange(1, 400)
    assert distinct_values(late) is None
    assert distinct_values(torch.tensor([2.0, 1.0, 2.0])).tolist() == [1.0, 2.0]
    assert [bits_for(n) for n in (1, 2, 3, 16, 17, 256)] == [1, 1, 2, 4, 8, 8]


def test_parts_that_do_not_fit_are_refused():
    codes = smallest(of_values((61, 43), 16))
    both = smallest(sparse(of_values((64, 33), 15), 0.75))
    channel = smallest(torch.stack([of_values((200,), 4, seed=i) for i in range(50)]))
    with pytest.raises(ValueError, match="indices"):
        restore(codes, (10**6, 10**6))  # nothing of that size is made
    with pytest.raises(ValueError, match="beyond its codebook"):
        restore({**codes, "codebook": codes["codebook"][:9]}, (61, 43))
    with pytest.raises(ValueError, match="float16"):
        restore({"codes": codes["codes"], "codebook16": codes["codebook"]}, (61, 43))
    with pytest.raises(ValueError, match="bytes"):
        restore({**both, "bitmap": both["bitmap"][:-1]}, (64, 33))
    with pytest.raises(ValueError, match="nothing"):
        restore({}, (3,))
    with pytest.raises(ValueError, match="beyond its codebook"):
        restore({**channel, "offsets": channel["offsets"] - 1}, (50, 200))
    with pytest.raises(ValueError, match="offsets"):
        restore({**channel, "offsets": channel["offsets"].T}, (50, 200))
    with pytest.raises(ValueError, match="values"):
        restore({"bitmap": both["bitmap"], "values": torch.ones(3)}, (64, 33))
