"""`.onnx` files as models to compress: every op becomes the ATen ops that compute it.

    model = read_onnx(Path("detector.onnx"))

| module           |                                                       |
|------------------|-------------------------------------------------------|
| `read`           | the file opened, traced, compared                     |
| `sizes`          | its inputs, and numbers for sizes that it leaves free |
| `compare`        | with ONNX Runtime, at those sizes and others          |
| `interpreter`    | the graph as a module that `torch.export` traces      |
| `rules`          | what each op computes, a module for each kind         |
| `stored`         | initializers and constants as parameters and buffers  |
| `stored_weights` | weights that files of ours have in a smaller form     |
| `values`         | tensors, and numbers that are known while tracing     |
| `groups`         | weights of 4 bits by groups, in whatever form         |

Operators' definitions: https://onnx.ai/onnx/operators.
"""

from nncompress.loading.onnx.read import read_onnx

__all__ = ["read_onnx"]
