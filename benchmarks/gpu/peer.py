"""diffusers in fp16 on this GPU, with the acceptance's requests: one step, from prompt to pixels.

    python -m benchmarks.gpu.peer --model seeded
    python -m benchmarks.gpu.peer --model seeded --compile      # torch.compile of UNet and decoder too, minutes

diffusers gets channels last and cuDNN's search for the fastest convolution. Prints one JSON document as its last
line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.runs import milliseconds
from benchmarks.results import ROOT
from sdturbo.errors import BackendUnavailable, SDTurboError

RUNS = 200  # as the acceptance's


def load(checkpoint: Path, device: str) -> Any:
    """diffusers' pipeline on a device: in fp16 on a GPU, in fp32 on the CPU."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.backends.cudnn.benchmark = True
    pipe = StableDiffusionPipeline.from_pretrained(
        checkpoint,
        dtype=torch.float32 if device == "cpu" else torch.float16,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)
    return pipe


def compile_modules(pipe: Any) -> None:
    """Compile UNet and decoder at the next request, as the fastest mode that records CUDA graphs does."""
    import torch

    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="reduce-overhead", fullgraph=True)


def draw(pipe: Any, number: int) -> Any:
    """The picture of request `number` as float32 (1, H, W, 3). Noise is drawn in float32, as the product's."""
    import torch

    size = pipe.unet.config.sample_size
    noise = torch.randn((1, 4, size, size), generator=torch.Generator().manual_seed(number))
    latents = noise.to(pipe.device, pipe.dtype)
    request = {"num_inference_steps": 1, "guidance_scale": 0.0, "latents": latents, "output_type": "np"}
    return pipe(f"picture number {number}", **request).images


def summarise(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds of whole requests as the acceptance gives them."""
    return {"median_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99)), "runs": len(times)}


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="seeded")
    parser.add_argument("--compile", action="store_true", help="with torch.compile too, minutes")
    arguments = parser.parse_args(command_line)
    try:
        rows = measure(arguments.model, compiled=arguments.compile)
    except SDTurboError as error:
        print(f"peer: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        figures = f"median {row['median_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, {row['runs']} runs"
        print(f"diffusers {row['diffusers']}, torch {row['torch']}, {row['way']}, fp16: {figures}")
    print(json.dumps({"model": arguments.model, "rows": rows}))
    return 0


def measure(model: str, *, compiled: bool) -> list[dict[str, Any]]:
    """A row for each way to run it. Raises BackendUnavailable without a GPU that torch can use."""
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"torch {torch.__version__} sees no GPU here. This command measures diffusers on one.")
    import diffusers

    from sdturbo_export.weights.resolve import resolve

    pipe = load(resolve(model, ROOT / "build" / "checkpoints").path, "cuda")
    head = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    rows: list[dict[str, Any]] = []
    for way in ("eager", "compiled") if compiled else ("eager",):
        if way == "compiled":
            compile_modules(pipe)
        rows.append({**head, "way": way, **summarise(milliseconds(lambda i: draw(pipe, i), RUNS))})
    return rows


if __name__ == "__main__":
    sys.exit(main())
