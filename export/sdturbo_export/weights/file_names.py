"""Names of a checkpoint's files in the Hub's diffusers layout. Without PyTorch, so that a download begins at once."""

from __future__ import annotations

# component -> (class in model_index.json, stem of its weight file)
COMPONENTS = {
    "text_encoder": ("CLIPTextModel", "model"),
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
}
ONE_FILE, VOCABULARY_FILES = "tokenizer.json", ("vocab.json", "merges.txt")  # in `tokenizer`: either form of it
