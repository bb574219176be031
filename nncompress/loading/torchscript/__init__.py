"""TorchScript archives (traced or scripted) as models to compress.

    source, module = read_torchscript(Path("model.pt"))

| module        |                                                                                        |
|---------------|----------------------------------------------------------------------------------------|
| `archive`     | the file checked and opened; nothing of it runs by that                                |
| `interpreter` | its graph as a module that `torch.export` traces, weights under their names            |
| `builtins`    | what TorchScript computes on numbers, lists, dicts and text, beside tensors' operators |

torch's own converter (`torch._export.converter`) is not used: it knows few forms of control flow. Here the
graph is walked while it is traced: sizes stay free, state stays in buffers, and only operators run that a
`.pt2` may call.

TorchScript's graphs: https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/OVERVIEW.md
"""

from nncompress.loading.torchscript.archive import read_torchscript
from nncompress.loading.torchscript.interpreter import AsScripted, GraphModule

__all__ = ["AsScripted", "GraphModule", "read_torchscript"]
