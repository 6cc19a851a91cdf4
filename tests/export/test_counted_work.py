"""Work counted in exported graphs (benchmarks/flops.py) beside what torch's own modules do."""

import math

import torch

from benchmarks.flops import flops, operations
from sdturbo_export.stages import Decoder


def test_exported_decoder_is_counted_as_its_modules(small_bundle, small_checkpoint):
    """The convolutions of the graph against those that torch runs."""
    decoder = Decoder(small_checkpoint.module("vae"), small_checkpoint).eval()
    total = 0

    def add(module, inputs, output):
        nonlocal total
        total += 2 * output.numel() * math.prod(module.weight.shape[1:])

    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        decoder.pixels(torch.zeros(1, 4, 64, 64))
    assert flops(operations(small_bundle.graph("decoder", 1)), "conv") <= total
    assert flops(operations(small_bundle.graph("decoder", 1)), "conv") >= 4 / 9 * total
