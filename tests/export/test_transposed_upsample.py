"""The upsampling of fp16 graphs as one transposed convolution equals upsampling and convolution."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from sdturbo_export.rewrites import rewrites_of
from sdturbo_export.rewrites.transposed_upsample import TransposedUpsample, transposed_upsampling
from sdturbo_export.stages import example_inputs, graph_module, stage_definitions


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 3), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_module_equals_upsampling_and_convolution(height, width, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 6, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(F.interpolate(x, scale_factor=2))
        assert torch.allclose(TransposedUpsample(conv)(x), expected, rtol=0, atol=1e-12)


def test_another_output_size_is_refused():
    with pytest.raises(ValueError, match="doubles the size"):
        TransposedUpsample(nn.Conv2d(2, 2, 3, padding=1))(torch.zeros(1, 2, 4, 4), 7)


def test_it_is_for_the_decoder_in_fp16_alone():
    assert "transposed-upsample" in rewrites_of("decoder", "fp16")
    for stage, precision in (("decoder", "fp32"), ("denoiser", "fp16"), ("encoder", "fp16"), ("text_encoder", "fp16")):
        assert "transposed-upsample" not in rewrites_of(stage, precision)
    assert "upsample" not in rewrites_of("decoder", "fp16")


def test_every_upsampling_of_the_decoder_is_changed_and_its_pixels_are_the_same(small_checkpoint):
    definition = stage_definitions(small_checkpoint)["decoder"]
    inputs = example_inputs(definition, 1, seed=2)
    inputs["latents"] = inputs["latents"][..., :16, :16]
    plain = graph_module(definition, without=["upsample", "group-norm"])
    with torch.no_grad():
        expected = plain.pixels(*inputs.values())
        transposed_upsampling(plain)
        changed = plain.pixels(*inputs.values())
    assert sum(isinstance(module, TransposedUpsample) for module in plain.modules()) == 3
    assert not any(isinstance(module, Upsample2D) for module in plain.modules())
    assert ((changed - expected).norm() / expected.norm()).item() < 1e-5
