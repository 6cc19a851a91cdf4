"""The settings of PEFT's adapters: alpha, rank and the kind of scaling. They are in the file itself or in a JSON beside it.

Scaling follows PEFT 0.21 (`tuners/lora/layer.py`, `utils/other.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdturbo_export.weights.weight_files import read_json

_BESIDE = "adapter_config.json"
_DEFAULTS = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}  # of PEFT's LoraConfig, which a file may leave out
_PEFT_KINDS = {"LOHA": "LoHa", "LOKR": "LoKr"}
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that move a part of the weight to the adapter


def settings_inside(metadata: Mapping[str, str] | None) -> Any:
    """The settings in a safetensors file's metadata, {} if there are none. Raises ValueError or RecursionError."""
    return json.loads((metadata or {}).get("lora_adapter_metadata", "{}"))


def settings_beside(path: Path) -> Path | None:
    """The JSON beside the file at `path`, if it belongs to it: the file has PEFT's names and no settings inside.

    None for a file that cannot be read.
    """
    beside = path.with_name(_BESIDE)
    if not beside.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            is_peft = any(".lora_A." in key for key in file.keys())  # noqa: SIM118 (safe_open is no mapping)
            return beside if is_peft and settings_inside(file.metadata()) == {} else None
    except (SafetensorError, OSError, ValueError, RecursionError):
        return None


def read_settings(file: Path, faults: defaultdict[str, list[str]]) -> dict[str, Any]:
    """PEFT's settings of an adapter. Those that say more than a LoRA does are faults.

    faults: fault -> places.
    """
    read: list[str] = []
    settings = _DEFAULTS | read_json(file, read)
    for fault in read:
        faults["its settings cannot be used"].append(fault)
    kind, start = str(settings["peft_type"]), settings.get("init_lora_weights")
    if kind != "LORA":
        faults[f"{_PEFT_KINDS.get(kind, kind)} is not supported, only LoRA is"].append(file.name)
    if settings.get("use_dora"):
        faults["DoRA is not supported, only LoRA is"].append(file.name)
    if settings.get("fan_in_fan_out"):
        faults["fan_in_fan_out is not supported: this model has no layer with transposed weights"].append(file.name)
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        faults[f"init_lora_weights is {start}, which changed the model too: save it converted to a LoRA"].append(
            file.name
        )
    return settings


def alpha_over_rank(
    alpha: torch.Tensor | None, rank: int, target: tuple[str, str], settings: Mapping[str, Any]
) -> float:
    """alpha/rank. alpha is the file's tensor, or that of PEFT's settings, or the rank.

    target: component, name of a module in it.
    Raises ValueError, TypeError, AttributeError, OverflowError or re.error for an alpha that makes no sense.
    """
    component, module = target

    def setting(name: str) -> Any:
        return settings.get(f"{component}.{name}", settings.get(name))

    def of_module(patterns: str, name: str) -> Any:
        own = (setting(patterns) or {}).items()
        return next((value for key, value in own if re.match(rf"(.*\.)?({key})$", module)), setting(name))

    divisor = float(rank)
    if alpha is not None:
        if alpha.numel() != 1:
            raise ValueError(f"{alpha.numel()} values instead of one")
        value = alpha.item()
    else:
        value, expected_rank = of_module("alpha_pattern", "lora_alpha"), of_module("rank_pattern", "r")
        if expected_rank not in (None, rank):
            raise ValueError(f"its settings say rank {expected_rank}, its matrices have {rank}")
        if value is not None and setting("use_rslora"):
            divisor = math.sqrt(rank)
    factor = 1.0 if value is None else float(value) / divisor
    if not math.isfinite(factor):
        raise ValueError(f"it is {value}")
    return factor
