"""`.onnx` files as models to compress: every op becomes the ATen ops that compute it.

    model = read_onnx(Path("detector.onnx"))

| module        |                                                                              |
|---------------|------------------------------------------------------------------------------|
| `read`        | the file opened, traced, compared                                            |
| `sizes`       | its inputs, and numbers for sizes that it leaves free                        |
| `compare`     | with ONNX Runtime, at those sizes and others                                 |
| `interpreter` | the graph as a module that `torch.export` traces                             |
| `stored`      | initializers and constants as parameters and buffers                         |
| `values`      | tensors, and numbers that are known while tracing                            |
| `groups`      | weights of 4 bits by groups, in whatever form                                |
| `pointwise`, `movement`, `reductions`, `layers`, `recurrent`, `quantized`, `control` | each op |

Operators' definitions: https://onnx.ai/onnx/operators.
"""

from nncompress.loading.onnx.read import read_onnx

__all__ = ["read_onnx"]
