"""The tiny checkpoint's configs, and the optimiser that trains it."""

from __future__ import annotations

import copy

import pytest
import torch

from sdturbo_export.weights.checkpoint import empty_module
from sdturbo_export.weights.schedule import schedule_from_config, scheduler_faults
from training.tiny.configs import tiny_configs
from training.tiny.optimizer import optimizers, orthogonal


def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 3, 3, padding=1),
    )


def train(net, both, steps):
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=generator)
        loss = (net(x) - x.flip(1)).square().mean()
        net.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 24, 100), (2, 100, 24), (1, 32, 32)])
def test_orthogonal_levels_the_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonal(matrices)
    values = torch.linalg.svdvals(result)[s / s.norm(dim=1, keepdim=True) > 0.02]
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ v).flatten(1)).min() > 0.9


def test_orthogonal_equals_newton_schulz_step_by_step():
    x = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = expected @ expected.mT
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    torch.testing.assert_close(orthogonal(x), expected)
    torch.testing.assert_close(orthogonal(x.float()).double(), expected, atol=1e-3, rtol=1e-3)


def test_orthogonal_of_zero_is_zero():
    assert not orthogonal(torch.zeros(1, 4, 9)).any()


def test_each_parameter_has_one_optimizer_and_learns():
    net = small_net()
    muon, adamw = optimizers(net)
    owned = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(net.parameters()))
    assert {p.ndim for p in muon.param_groups[0]["params"]} == {4}
    losses = train(net, (muon, adamw), 60)
    assert losses[-1] < 0.4 * losses[0]


def test_training_resumes_from_the_optimizers_states():
    net = small_net()
    both = optimizers(net)
    train(net, both, 3)
    other = copy.deepcopy(net)
    again = optimizers(other)
    for optimizer, saved in zip(again, both, strict=True):
        optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    train(net, both, 3)
    train(other, again, 3)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_first_and_last_layers_and_embeddings_are_not_muons():
    config = tiny_configs()
    unet, text = (empty_module(component, config[component]) for component in ("unet", "text_encoder"))
    for module in (unet, text):
        chosen = {id(p) for p in optimizers(module)[0].param_groups[0]["params"]}
        for name, parameter in module.named_parameters():
            if name.startswith(("conv_in", "conv_out")) or "embeddings" in name or parameter.ndim == 1:
                assert id(parameter) not in chosen, name
        assert len(chosen) > 10


def test_the_configs_build_sd_turbos_classes_for_the_same_latents():
    config = tiny_configs()
    assert scheduler_faults(config["scheduler"]) == []
    assert schedule_from_config(config["scheduler"]).prediction_type == "sample"
    parameters = {
        component: sum(p.numel() for p in empty_module(component, config[component]).parameters())
        for component in ("text_encoder", "unet", "vae")
    }
    assert parameters["unet"] < 6e6
    assert parameters["vae"] < 1.5e6
    assert config["unet"]["sample_size"] == 64
    assert config["unet"]["cross_attention_dim"] == config["text_encoder"]["hidden_size"]
    assert config["vae"]["sample_size"] == 512
