"""Tools that show whether the GPU code works on a card, and its speed there.

Most modules are commands: `python -m benchmarks.gpu.smoke --help`.

On a card, in this order:

1. `smoke`: memory, streams and CUDA graphs of our own code, with three small kernels in the place of engines. Seconds.
2. `make gpu-acceptance`: engines, parity, latency, memory and a soak. Under 30 minutes.
3. `variants`: other options of ONNX Runtime's CUDA provider than the product's.
4. `profile_stages`: the kernels of each stage by time.
5. `peer`: diffusers in fp16 on the same card.

Without a card run `smoke --imitate`, `rtx_build` and `rtx_layers`. The last two use NVIDIA's TensorRT for RTX, which compiles
on any x86-64 machine. All but the parts of TensorRT ran on an H100 or H200: see ../gpu_acceptance.md.
"""
