"""The directories that OpenVINO GenAI and optimum-intel load. Argument: the kind.

export         the checkpoint by optimum-intel, with weights in fp16
int8-weights   of an export: NNCF's 8-bit weights in every part
hybrid-int8    of an export: NNCF's hybrid form: 8-bit arithmetic in the UNet's convolutions, 8-bit weights elsewhere
full-int8      of an export: NNCF's 8-bit arithmetic in all of the UNet, 8-bit weights elsewhere
tiny-decoder   of any of these: a converted AutoencoderTiny in the place of the decoder
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lines import answer_lines

LATENTS = (1, 4, 64, 64)


class OpenVinoConverter:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prepare(self, request: Mapping[str, Any]) -> None:
        out = Path(request["model"])
        if self.kind == "export":
            self._export(request["checkpoint"], out)
            return
        shutil.copytree(request["base"], out)
        if self.kind == "tiny-decoder":
            self._replace_decoder(Path(request["decoder"]), out / "vae_decoder")
        else:
            self._quantize(request["base"], request["prompts"], out)

    def _export(self, checkpoint: str, out: Path) -> None:
        from optimum.exporters.openvino import main_export  # pyright: ignore[reportMissingImports] (of its own environment)
        from optimum.intel import OVConfig  # pyright: ignore[reportMissingImports] (of its own environment)

        main_export(
            checkpoint, output=out, task="text-to-image", convert_tokenizer=True, ov_config=OVConfig(dtype="fp16")
        )

    def _quantize(self, base: str, prompts: list[str], out: Path) -> None:
        from optimum.intel import (  # pyright: ignore[reportMissingImports] (of its own environment)
            OVQuantizationConfig,
            OVStableDiffusionPipeline,
            OVWeightQuantizationConfig,
        )

        config = {
            "int8-weights": lambda: OVWeightQuantizationConfig(bits=8),
            "hybrid-int8": lambda: OVWeightQuantizationConfig(bits=8, quant_method="hybrid", dataset=prompts),
            "full-int8": lambda: OVQuantizationConfig(bits=8, dataset=prompts),
        }[self.kind]()
        pipe = OVStableDiffusionPipeline.from_pretrained(base, quantization_config=config, safety_checker=None)
        pipe.save_pretrained(out)  # over the copy, which keeps the converted tokenizer

    def _replace_decoder(self, decoder: Path, folder: Path) -> None:
        import torch
        from diffusers import AutoencoderTiny
        from openvino import convert_model, save_model  # pyright: ignore[reportAttributeAccessIssue] (not in our stubs)

        tiny: Any = AutoencoderTiny
        model = tiny.from_pretrained(decoder).eval()

        class Decode(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.autoencoder = model

            def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
                return self.autoencoder.decode(latent_sample, return_dict=False)[0]

        with torch.no_grad():
            converted = convert_model(Decode(), example_input={"latent_sample": torch.zeros(LATENTS)})
        converted.reshape([-1, LATENTS[1], -1, -1])
        converted.outputs[0].get_tensor().set_names({"sample"})
        save_model(converted, folder / "openvino_model.xml", compress_to_fp16=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["scaling_factor"] = model.config.scaling_factor
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    answer_lines(OpenVinoConverter(sys.argv[1]))
