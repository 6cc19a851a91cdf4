"""A checkpoint's tensors under the names of ldm (latent diffusion): the inverse of the key map, after diffusers' script for
that direction (scripts/convert_diffusers_to_original_stable_diffusion.py) with open_clip's names for the text encoder."""

import re

import torch

_UNET = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
)
_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)
_TEXT = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)


def unet_name(name: str, layers: int) -> str:
    """layers: layers_per_block."""
    for pattern, new in _UNET:
        name = re.sub(pattern, new, name)
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # after the attention, where there is one
            return f"output_blocks.{block * (layers + 1) + layers}.{1 if block == 0 else 2}.{rest}"
        index = block * (layers + 1) + layer + (side == "down")
        name = f"{'in' if side == 'down' else 'out'}put_blocks.{index}.{0 if kind == 'resnets' else 1}.{rest}"
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", name):
        for old, new in _RESNET:
            name = re.sub(rf"(?<=\d\.){re.escape(old)}", new, name)
    return name


def vae_name(name: str) -> str:
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2.", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
    name = re.sub(
        r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}.", name
    )
    name = re.sub(
        r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample.", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
    return re.sub(r"\.to_(q|k|v)\.", r".\1.", name).replace(".to_out.0.", ".proj_out.")


def to_ldm(checkpoint, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The tensors of a whole file, with what Stability's files hold beside the weights."""
    tensors = {"alphas_cumprod": torch.ones(1000), "global_step": torch.tensor(7)}
    layers = checkpoint.configs["unet"]["layers_per_block"]
    for name, tensor in checkpoint.state_dict("unet").items():
        tensors[f"model.diffusion_model.{unet_name(name, layers)}"] = tensor.to(dtype)
    for name, tensor in checkpoint.state_dict("vae").items():
        attention = ".attentions." in name and "norm" not in name and name.endswith("weight")
        kernel = tensor[:, :, None, None] if attention else tensor  # 1×1 convolutions
        tensors[f"first_stage_model.{vae_name(name)}"] = kernel.to(dtype)
    return tensors | text_tensors(checkpoint.state_dict("text_encoder"), dtype)


def text_tensors(state, dtype=torch.float32) -> dict[str, torch.Tensor]:
    prefix = "cond_stage_model.model."
    tensors = {f"{prefix}logit_scale": torch.tensor(1.0)}
    tensors[f"{prefix}text_projection"] = torch.eye(state["text_model.final_layer_norm.bias"].shape[0])
    for name, tensor in state.items():
        new = name
        for old, replacement in _TEXT:
            new = new.replace(old, replacement)
        if ".self_attn.q_proj." in name:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            new = re.sub(r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1", new)
            tensors[prefix + new] = torch.cat(parts).to(dtype)
        elif "_proj." not in name or ".out_proj." in name:
            tensors[prefix + new] = tensor.to(dtype)
    return tensors
