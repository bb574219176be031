"""`.onnx` files as models to compress: every op becomes the ATen ops that compute it.

    model = read_onnx(Path("detector.onnx"))

| module        |                                                                              |
|---------------|------------------------------------------------------------------------------|
| `read`        | the file opened, traced at sizes that it runs on, compared with ONNX Runtime |
| `interpreter` | the graph as a module that `torch.export` traces                             |
| `values`      | tensors, and numbers that are known while tracing                            |
| `pointwise`, `movement`, `reductions`, `layers`, `recurrent`, `quantized`, `control` | each op |

Operators' definitions: https://onnx.ai/onnx/operators.
"""

from nncompress.loading.onnx.read import read_onnx

__all__ = ["read_onnx"]
