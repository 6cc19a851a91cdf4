"""Checkpoint to bundle: torch, diffusers and onnx live in this package only."""
