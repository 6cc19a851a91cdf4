"""The numbers inside the embedded model: small enough for float16, and every path carries its share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from sdturbo.noise import randn
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny.layout import CHANNELS, LATENTS
from training.tiny.pixels import to_tensor
from training.tiny.prompts import Prompts
from training.tiny.sampler import denoised, schedule_rows
from training.tiny.starts import Starts

LARGEST, LEAST_SHARE, LEAST_OF_ONE = 1e3, 0.05, 0.03
PROMPTS = ("a red cat in the snow", "a white robot at night", "", "qwerty " * 40)


@pytest.fixture(scope="module")
def modules():
    checkpoint = open_checkpoint(TINY_CHECKPOINT)
    return {name: checkpoint.module(name).float().eval() for name in ("text_encoder", "unet", "vae")}


@torch.no_grad()
def requests(modules):
    """Every row of the schedule once, from noise or from start pictures under noise, and all stages around it."""
    ids = torch.from_numpy(np.stack([Prompts().ids(text) for text in PROMPTS]))
    embeds = modules["text_encoder"](ids).last_hidden_state
    starts = Starts(held_out=True).pictures(3)
    for i, row in enumerate(schedule_rows()):
        noise = torch.from_numpy(randn([i], (1, CHANNELS, LATENTS, LATENTS))[0])
        start = modules["vae"].encode(to_tensor(starts[i % 3][None])).latent_dist.mean if row.index else 0
        x = denoised(modules["unet"], start + row.sigma * noise, embeds[i % len(PROMPTS)][None], row)
        modules["vae"].decode(x)


def test_no_number_inside_is_large(modules):
    largest = {}

    def note(name):
        def hook(_module, _inputs, output):
            if torch.is_tensor(output):
                largest[name] = max(largest.get(name, 0.0), output.abs().max().item())

        return hook

    hooks = [
        layer.register_forward_hook(note(f"{stage}.{name}"))
        for stage, module in modules.items()
        for name, layer in module.named_modules()
    ]
    requests(modules)
    for hook in hooks:
        hook.remove()
    assert len(largest) > 250
    assert {name: value for name, value in largest.items() if not value <= LARGEST} == {}


def test_skips_and_branches_of_every_up_block_carry_their_share(modules):
    shares = {}

    def note(name, skip_channels):
        def hook(resnet, inputs, output):
            skip = inputs[0][:, -skip_channels:]
            through = conv2d(skip, resnet.conv_shortcut.weight[:, -skip_channels:])
            branch = output - resnet.conv_shortcut(inputs[0])
            for part, values in (("skip", through), ("branch", branch)):
                shares.setdefault(f"{name} {part}", []).append((values.std() / output.std()).item())

        return hook

    hooks = []
    for i, block in enumerate(modules["unet"].up_blocks):
        for j, resnet in enumerate(block.resnets):
            hidden = resnet.conv_shortcut.in_channels
            before = block.resnets[j - 1].conv2.out_channels if j else hidden_into(modules["unet"], i)
            hooks.append(resnet.register_forward_hook(note(f"up_blocks.{i}.resnets.{j}", hidden - before)))
    requests(modules)
    for hook in hooks:
        hook.remove()
    assert len(shares) == 2 * sum(len(block.resnets) for block in modules["unet"].up_blocks)
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    blocks = range(len(modules["unet"].up_blocks))
    for part in ("skip", "branch"):
        of_blocks = [
            np.mean([v for k, v in means.items() if k.startswith(f"up_blocks.{i}.") and part in k]) for i in blocks
        ]
        assert min(of_blocks) >= LEAST_SHARE, of_blocks
    # the last skip is the noisy input itself, of which little may be left at the first step
    assert {name: share for name, share in means.items() if share < LEAST_OF_ONE} == {}


def hidden_into(unet, i):
    """Channels that reach up block i from below."""
    below = unet.mid_block if i == 0 else unet.up_blocks[i - 1]
    return below.resnets[-1].conv2.out_channels
