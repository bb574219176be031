import io
import re

from rich.console import Console

from nncompress.analysis.couplings.summary import GroupSummary
from nncompress.report.groups import groups


def shown(rows, pinned) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(groups(rows, 0.949, pinned))
    return out.getvalue()


def test_names_and_reasons_keep_whole_words_at_80_columns():
    prefix = "model.encoder.layers.0."
    layers = (f"{prefix}self_attn", f"{prefix}self_attn.out_proj")
    pinned = {(f"{prefix}self_attn.in_proj_weight", 1): "linear: meets a fixed size"}
    pinned |= {(f"{prefix}norm{n}.weight", 0): f"layer_norm_{n}: meets a fixed size" for n in range(9)}
    pinned |= {
        ("out.weight", 0): "output: an output of the model",
        ("stem.weight", 2): "c: a kernel's extent",
    }
    text = shown([GroupSummary(layers[0], 4, layers, 594, 3888)], pinned)
    assert max(map(len, text.splitlines())) <= 80
    assert "…self_attn.out_proj" in text
    assert f"    {prefix}self_attn.in_proj_weight dim 1," in text
    assert "fixed, because: meets a fixed size (at linear, layer_norm_0, layer_norm_1," in text
    assert re.search(r"layer_norm_2\s+and 6 more\)", text)
    assert re.search(r"and 6 more *\n", text)  # tensors
    assert "fixed, because: an output of the model\n    out.weight dim 0" in text
    assert "stem" not in text


def test_layers_that_share_nothing_are_named_in_full():
    text = shown([GroupSummary("conv1", 16, ("conv1", "bn1", "layer1.0.conv1", "fc", "head"), 9, 9)], {})
    assert "conv1, bn1, layer1.0.conv1, fc" in re.sub(r"\s+", " ", text)
    assert "and 1 more" in re.sub(r"\s+", " ", text)
