"""The checkpoint of trained weights in the Hub's diffusers layout, with card and licence.

transformers 5 and diffusers save other names: text encoder keys without `text_model.`, the tokenizer as one
`tokenizer.json`. So the files are written here.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdturbo_export.exchange import new_directory
from sdturbo_export.weights.checkpoint import hub_name
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.tokenizer_files import write_tokenizer
from training.tiny.captions import COLOUR_WORDS, PLACE_WORDS, SUBJECT_WORDS
from training.tiny.configs import FILES, tiny_configs
from training.tiny.model import load_model, load_vae
from training.tiny.scenes import HELD_OUT, TRAINING

LICENCE = (
    "Copyright the authors of sdturbo. The weights of this checkpoint were trained by them, on pictures that their own"
    " program\ndraws. They are licensed under the Apache License, Version 2.0:"
    " https://www.apache.org/licenses/LICENSE-2.0\n\n"
    "The tokenizer's vocabulary is OpenAI CLIP's (MIT licence).\n"
)


def write_checkpoint(out: Path, modules: Mapping[str, nn.Module], *, results: str = "") -> Path:
    """Write `text_encoder`, `unet` and `vae` to the directory `out`, in the place of its contents, and return it.

    Weights are float16 under the plain names. results: lines of a table for the card, `| what | figure |`.
    """
    with new_directory(out) as partial:
        write_tokenizer(partial / "tokenizer")
        for component, config in tiny_configs().items():
            file = partial / FILES[component]
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for component, (_, stem) in COMPONENTS.items():
            target = partial / component / f"{stem}.safetensors"
            save_file(half_tensors(component, modules[component]), target, metadata={"format": "pt"})
            shutil.copymode(partial / FILES[component], target)  # safetensors makes private files
        (partial / "LICENSE.md").write_text(LICENCE)
        (partial / "README.md").write_text(card(results))
        shutil.rmtree(out, ignore_errors=True)
    return out


def half_tensors(component: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights in float16 under the Hub's names. Raises ValueError where one is out of its range."""
    weights: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        half = value.detach().to(torch.float16).contiguous()
        if not half.isfinite().all():
            raise ValueError(f"{component}: {name} does not fit float16. Its largest value is {value.abs().max():.3g}")
        weights[hub_name(component, name)] = half
    return weights


def card(results: str = "") -> str:
    """The model card, from `model_card.md`, with the captions' own words for the pictures."""
    text = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    words = {"subjects": SUBJECT_WORDS, "colours": COLOUR_WORDS, "scenes": PLACE_WORDS}
    lists = {
        name: "\n".join(f"- {', '.join(synonyms)}." for synonyms in table.values()) for name, table in words.items()
    }
    table = f"| what | figure |\n|---|---|\n{results.strip()}" if results else "Not measured yet."
    return text.format(training=len(TRAINING), held_out=len(HELD_OUT), results=table, **lists)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.tiny.checkpoint_writer RUN OUT`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the trainings: unet/model.pt, decoder/vae.pt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, help="results.md of the evaluation, for the card")
    options = parser.parse_args(arguments)
    model = load_model(options.run / "unet" / "model.pt")
    modules = {
        "text_encoder": model.text_encoder,
        "unet": model.unet,
        "vae": load_vae(options.run / "decoder" / "vae.pt"),
    }
    print(write_checkpoint(options.out, modules, results=options.results.read_text() if options.results else ""))


if __name__ == "__main__":
    main()
