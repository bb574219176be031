"""The scripts that measured what the documentation says, a room for each subject.

    python -m benchmarks.ROOM.SCRIPT --help      from the folder of the checkout

networks       trained and published networks that several scripts take, as architecture files
architectures  small networks of every kind; sweeps: a pass on each of them, checked by hand
resnets        what passes cost and gain on trained CIFAR ResNets; language: on a language model
int8           accuracy and latency of int8, by layer, option and runtime
measurement    whether intervals and promises hold as often as they say; runtimes side by side
cost           time and memory that the tool itself takes
fuzz           broken and hostile files; robustness: killed commands, laws on random networks
onnx_ops       chains of ONNX operators that ONNX Runtime computes wrongly
"""
