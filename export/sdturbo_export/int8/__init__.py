"""int8: denoiser and decoder with 8-bit products where measurements allow them, and a gate on the pictures.

`recipe` is the order of things: `trajectories` (what the stages really see) → `ranges` (of the activations) →
`sensitivity` (each layer's own damage) → `qdq` (the graph) → `quality` (the pictures).
"""
