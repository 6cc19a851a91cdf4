"""Code written for a diffusers pipeline, on sdturbo. Only the line that loads the pipeline changes.

`TextToImage` translates the arguments that sdturbo does not know.
"""

from __future__ import annotations

from typing import Any, Protocol

from PIL import Image

from sdturbo import Pipeline, Result


class Generator(Protocol):
    """The part of `torch.Generator` that tells the seed."""

    def initial_seed(self) -> int: ...


class TextToImage:
    """Takes the arguments that SD-Turbo's model card passes to AutoPipelineForText2Image, and gives `.images`.

    It takes `guidance_scale` only with values that have no effect. Raises ValueError for others.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __call__(
        self,
        prompt: str | list[str],
        image: Image.Image | None = None,
        *,
        guidance_scale: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        **options: Any,
    ) -> Result:
        if guidance_scale > 1:
            raise ValueError(
                f"Got guidance_scale={guidance_scale}. SD-Turbo is trained without guidance, so leave it out."
            )
        if isinstance(generator, list):
            options["seed"] = [each.initial_seed() for each in generator]
        elif generator is not None:
            options["seed"] = generator.initial_seed()
        return self._pipeline(prompt, image, **options)


def someone_elses_code(pipe: Any) -> Image.Image:
    """Written for diffusers. It does not know sdturbo."""
    return pipe(prompt="a red cat in the snow", num_inference_steps=1, guidance_scale=0.0).images[0]


if __name__ == "__main__":
    # pipe = AutoPipelineForText2Image.from_pretrained("stabilityai/sd-turbo")
    someone_elses_code(TextToImage(Pipeline.load("build/sd-turbo"))).save("cat.png")
