"""The `torch` backend: the FP32 reference on the CPU, programs in CUDA graphs on a GPU, torch-tensorrt's build.

`import torch` is the library wherever it stands: imports are absolute.
"""
