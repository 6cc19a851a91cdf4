"""int8: denoiser and decoder with 8-bit products where measurements allow them, and a gate on the pictures.

`recipe` has the order: `trajectories` (tensors of real requests) → `ranges` (of the activations) → `sensitivity` (each
layer's own damage) → `qdq` (QuantizeLinear and DequantizeLinear in the graph) → `quality` (the pictures).
"""
