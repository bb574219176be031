"""The forms that a low-rank layer can take: their ranks, errors, costs, and how they go into the graph.

| form    | layer             | factors (per group)                                                   |
|---------|-------------------|-----------------------------------------------------------------------|
| linear  | linear, embedding | W [a, b] = left [a, r] · right [r, b]                                 |
| channel | convolution       | K×K to r channels, then 1×1 (transposed: 1×1 to r channels, then K×K) |
| spatial | K×K convolution   | K×1 to r channels, then 1×K (kernel composing)                        |
| tucker  | K×K convolution   | 1×1 to r₁ channels, K×K to r₂, 1×1                                    |
"""
