"""The four stages: the computation of each graph, in the words of diffusers (reference) and as it is exported (graph module).

The reference is diffusers' own modules and scheduler, untouched. Parity is measured against it. The graph module folds in
the arithmetic around the model, so that the runtime only copies. Latents and embeddings cross stage borders in float32 at
every precision inside (`rewrites/half.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, EulerDiscreteScheduler
from torch import nn

from sdturbo.bundle.description import GraphName, Size, Stage, TensorSpec
from sdturbo.tokenizer import MAX_LENGTH
from sdturbo_export.options import DEFAULT_SIZE
from sdturbo_export.rewrites import rewrite, rewrites_of
from sdturbo_export.rewrites.half import Half
from sdturbo_export.weights.checkpoint import Checkpoint
from sdturbo_export.weights.schedule import step_coefficients


@dataclass(frozen=True, slots=True)
class StageDefinition:
    """How a stage of `checkpoint` is made. Its weights are those of `component`.

    graph, reference: make modules around that component. inputs, output: the graph's tensors at any size.
    """

    checkpoint: Checkpoint
    name: str
    component: str
    graph: Callable[[Any, Checkpoint], nn.Module]
    reference: Callable[[Any, Checkpoint], nn.Module]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec

    def graph_names(self, batch_sizes: Iterable[int], sizes: Iterable[Size]) -> list[GraphName]:
        """The plain graphs of a bundle with those sizes. A stage that sees no picture has one for all of its sizes."""
        stage = Stage(self.name, self.inputs, (self.output,), {})
        of_pictures = list(sizes) if stage.is_sized else [(0, 0)]
        return [GraphName(batch_size, *size) for size in of_pictures for batch_size in batch_sizes]


class TextEncoder(nn.Module):
    """input_ids int64 (B, 77) -> prompt_embeds float32 (B, 77, width)."""

    def __init__(self, text_encoder: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(input_ids).last_hidden_state.float()


class TimestepOf(nn.Module):
    """step () -> the timestep of that row, int64 ()."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.timesteps = nn.Buffer(torch.tensor([row.timestep for row in checkpoint.schedule.rows]))

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        return self.timesteps[step.reshape(1)].reshape(())


class Denoiser(nn.Module):
    """One step: c_in·x into the UNet, then x' = a·x + b·out, with the coefficients of row `step`."""

    def __init__(self, unet: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.unet = unet
        self.timestep: nn.Module = TimestepOf(checkpoint)
        self.coefficients = nn.Buffer(torch.from_numpy(step_coefficients(checkpoint.schedule)))

    def forward(self, latents: torch.Tensor, prompt_embeds: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        c_in, a, b = self.coefficients[step.reshape(1)].reshape(3).unbind()
        x, prompt_embeds = _cast(self.unet, latents * c_in, prompt_embeds)
        out = self.unet(x, self.timestep(step), prompt_embeds, return_dict=False)[0].float()
        return a * latents + b * out


class DenoiserReference(nn.Module):
    """The same by diffusers' UNet and EulerDiscreteScheduler."""

    def __init__(self, unet: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.unet = unet
        self.rows = checkpoint.schedule.rows
        self.scheduler = EulerDiscreteScheduler.from_config(dict(checkpoint.configs["scheduler"]))

    def forward(self, latents: torch.Tensor, prompt_embeds: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        row = self.rows[int(step)]
        self.scheduler.set_timesteps(row.num_inference_steps)
        self.scheduler.set_begin_index(row.index)
        timestep = self.scheduler.timesteps[row.index]
        out = self.unet(self.scheduler.scale_model_input(latents, timestep), timestep, prompt_embeds).sample
        return self.scheduler.step(out, timestep, latents).prev_sample


class Decoder(nn.Module):
    """latents float32 (B, 4, H/8, W/8) -> image uint8 (B, H, W, 3): round(255·clamp(x/2 + ½)), half to even.

    The cast to uint8 is the graph's last node: TensorRT takes uint8 as a graph's input or output alone, beside one Cast
    (onnx-tensorrt, docs/operators.md).
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = checkpoint.configs["vae"]["scaling_factor"]

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """The picture before rounding: float32 (B, 3, H, W), 0 to 255."""
        (z,) = _cast(self.vae, latents / self.scaling_factor)
        image = self.vae.decode(z, return_dict=False)[0].float()
        return (image * 0.5 + 0.5).clamp(0, 1) * 255

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pixels(latents).round().permute(0, 2, 3, 1).to(torch.uint8)


class Encoder(nn.Module):
    """image uint8 (B, H, W, 3), two noises, step -> (mean + exp(logvar/2)·posterior_noise)·scaling + sigma[step]·noise."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.vae: Any = vae  # each of the two encoders calls methods of its own class
        self.scaling_factor = checkpoint.configs["vae"]["scaling_factor"]
        self.sigmas = nn.Buffer(torch.tensor([row.sigma for row in checkpoint.schedule.rows]))

    def forward(
        self, image: torch.Tensor, posterior_noise: torch.Tensor, noise: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        (x,) = _cast(self.vae, _from_pixels(image))
        moments = self.vae.quant_conv(self.vae.encoder(x)).float()
        mean, logvar = moments.chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * posterior_noise
        return z * self.scaling_factor + self.sigmas[step.reshape(1)].reshape(()) * noise


class TinyEncoder(Encoder):
    """The same with AutoencoderTiny, which has no posterior: noise, step -> encoded·scaling + sigma[step]·noise."""

    def forward(self, image: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        (x,) = _cast(self.vae, _from_pixels(image))
        z = self.vae.encode(x, return_dict=False)[0].float()
        return z * self.scaling_factor + self.sigmas[step.reshape(1)].reshape(()) * noise


class EncoderReference(nn.Module):
    """The same by diffusers' AutoencoderKL posterior, or AutoencoderTiny, and EulerDiscreteScheduler.add_noise."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.vae = vae
        self.rows = checkpoint.schedule.rows
        self.scheduler = EulerDiscreteScheduler.from_config(dict(checkpoint.configs["scheduler"]))

    def forward(self, image: torch.Tensor, *noises_and_step: torch.Tensor) -> torch.Tensor:
        *posterior_noise, noise, step = noises_and_step
        encoded: Any = self.vae.encode(2.0 * (image.permute(0, 3, 1, 2).float() / 255.0) - 1.0)
        z = (
            encoded.latent_dist.mean + encoded.latent_dist.std * posterior_noise[0]
            if posterior_noise
            else encoded.latents
        )
        latents = z * self.vae.config.scaling_factor
        row = self.rows[int(step)]
        self.scheduler.set_timesteps(row.num_inference_steps)
        timesteps = self.scheduler.timesteps[row.index].repeat(len(image))
        return self.scheduler.add_noise(latents, noise, timesteps)


def _from_pixels(image: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3), 0 to 255 -> float32 (B, 3, H, W), -1 to 1. The cast is the graph's first node (see `Decoder`)."""
    return image.float().permute(0, 3, 1, 2) / 255 * 2 - 1


def _cast(module: nn.Module, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in the type of the module's weights. Nothing happens to float32 in a float32 module."""
    dtype = next(module.parameters()).dtype
    return tuple(tensor.to(dtype) for tensor in tensors)


def stage_definitions(checkpoint: Checkpoint) -> dict[str, StageDefinition]:
    """The four stages by name, in the order in which a build makes them."""
    latents, next_latents, posterior_noise, noise = (
        TensorSpec(name, "float32", ("B", 4, "H/8", "W/8"))
        for name in ("latents", "next_latents", "posterior_noise", "noise")
    )
    input_ids = TensorSpec("input_ids", "int64", ("B", MAX_LENGTH))
    width = checkpoint.configs["text_encoder"]["hidden_size"]
    prompt_embeds = TensorSpec("prompt_embeds", "float32", ("B", MAX_LENGTH, width))
    image, step = TensorSpec("image", "uint8", ("B", "H", "W", 3)), TensorSpec("step", "int64", ())
    encoder = TinyEncoder if checkpoint.decoder else Encoder
    noises = (noise,) if checkpoint.decoder else (posterior_noise, noise)  # in the order in which diffusers draws them
    define = partial(StageDefinition, checkpoint)
    definitions = (
        define("text_encoder", "text_encoder", TextEncoder, TextEncoder, (input_ids,), prompt_embeds),
        # ONNX names are assigned once: the output is not called `latents` again
        define("denoiser", "unet", Denoiser, DenoiserReference, (latents, prompt_embeds, step), next_latents),
        define("decoder", "vae", Decoder, Decoder, (latents,), image),
        define("encoder", "vae", encoder, EncoderReference, (image, *noises, step), latents),
    )
    return {definition.name: definition for definition in definitions}


def graph_module(definition: StageDefinition, *, precision: str = "fp32", without: Collection[str] = ()) -> nn.Module:
    """The stage as it is exported, with weights of its own: rewritten except by `without`, in fp32 or fp16."""
    stage = definition.graph(definition.checkpoint.module(definition.component), definition.checkpoint)
    rewrite(stage, rewrites_of(definition.name, precision, without))
    return (Half(stage) if precision == "fp16" else stage).eval()


def stage_of(definition: StageDefinition, size: Size = DEFAULT_SIZE) -> Stage:
    """The stage as a bundle describes it, for pictures of that size, without its graphs."""
    return Stage(definition.name, definition.inputs, (definition.output,), {}).at(*size)


def example_inputs(
    definition: StageDefinition, batch_size: int, size: Size = DEFAULT_SIZE, *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of the stage with the statistics of a real run, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    sigma_max = definition.checkpoint.schedule.rows[0].sigma
    vocabulary = definition.checkpoint.configs["text_encoder"]["vocab_size"]
    inputs: dict[str, torch.Tensor] = {}
    for spec in definition.inputs:
        shape = spec.at(*size).shape_at(batch_size)
        if spec.name == "input_ids":
            value: Any = torch.randint(0, vocabulary, shape, generator=generator)
        elif spec.name == "image":
            value = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        elif spec.name == "step":
            value = torch.tensor(1)  # the first of two steps: sigma_next is not zero
        elif spec.name == "latents" and definition.name == "denoiser":
            value = torch.randn(shape, generator=generator) * sigma_max
        else:
            value = torch.randn(shape, generator=generator)
        inputs[spec.name] = value
    return inputs
