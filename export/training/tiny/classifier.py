"""A judge of pictures that has seen renders only. It names subject, colour and scene.

It learns on training combinations, as they are rendered and as the autoencoder returns them, each at random brightness,
place, blur and noise. It sees pictures at 128 x 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.tiny.palette import TONES
from training.tiny.pixels import to_pictures, to_tensor
from training.tiny.renders import Renders, combination
from training.tiny.scenery import SCENERY
from training.tiny.scenes import Combination
from training.tiny.subjects import SUBJECTS

SIDE, REDUCTION = 128, 4
NAMES = (tuple(SUBJECTS), tuple(TONES), tuple(SCENERY))
WIDTHS = (16, 32, 64, 64)
BATCH, LR = 48, 2e-3


class Classifier(nn.Module):
    """float32 (n, 3, 128, 128), -1 … 1 -> logits of subject, colour and scene, (n, 8 + 8 + 6)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Dropout2d(0.1), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1] * (SIDE // 2 ** len(WIDTHS)) ** 2, sum(map(len, NAMES)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))

    def judge(self, pictures: NDArray[np.uint8]) -> list[Combination]:
        """What each of the pictures (n, 512, 512, 3) shows."""
        best = [part.argmax(1).tolist() for part in self._logits(pictures)]
        return [
            Combination(*(names[i] for names, i in zip(NAMES, places, strict=True)))
            for places in zip(*best, strict=True)
        ]

    def sureness(self, pictures: NDArray[np.uint8]) -> float:
        """Mean probability, 0 … 1, that the judge gives to the most likely subject."""
        return float(self._logits(pictures)[0].softmax(1).amax(1).mean())

    @torch.no_grad()
    def _logits(self, pictures: NDArray[np.uint8]) -> list[Tensor]:
        logits = self.eval()(to_tensor(reduced(pictures)))
        return list(logits.split([len(names) for names in NAMES], dim=1))


@dataclass(frozen=True, slots=True)
class Examples:
    """pictures: uint8 (n, 128, 128, 3). labels: int64 (n, 3), places in NAMES."""

    pictures: NDArray[np.uint8]
    labels: Tensor


def examples(renders: Renders, count: int, vae: AutoencoderKL, reconstructions: int) -> Examples:
    """The first `count` renders, and the first `reconstructions` of them through the autoencoder too."""
    pictures = [reduced(renders.picture(i)[None])[0] for i in range(count)]
    for i in range(reconstructions):
        with torch.no_grad():
            latents = vae.encode(to_tensor(renders.picture(i)[None])).latent_dist.mean
            pictures.append(reduced(to_pictures(vae.decode(latents).sample))[0])
    shown = [combination(renders.scene(i)) for i in (*range(count), *range(reconstructions))]
    labels = [[names.index(word) for names, word in zip(NAMES, what, strict=True)] for what in shown]
    return Examples(np.stack(pictures), torch.tensor(labels))


def train_classifier(known: Examples, steps: int) -> Classifier:
    """Train from nothing, with the learning rate falling to zero."""
    torch.manual_seed(0)
    rng, classifier = np.random.default_rng(0), Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LR, weight_decay=0.02)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        chosen = rng.integers(len(known.pictures), size=BATCH)
        logits = classifier(disturbed(to_tensor(known.pictures[chosen]), rng))
        parts = logits.split([len(names) for names in NAMES], dim=1)
        losses = [F.cross_entropy(part, known.labels[chosen, i]) for i, part in enumerate(parts)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return classifier.eval()


def disturbed(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture a little brighter or darker and noisy. The batch is moved by up to 4 pixels, at times blurred."""
    y, z = (int(v) for v in rng.integers(-4, 5, 2))
    x = F.pad(x, (4, 4, 4, 4), mode="replicate")[:, :, 4 + y : 4 + y + SIDE, 4 + z : 4 + z + SIDE]
    if rng.random() < 0.4:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (len(x), 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return x * gain + rng.uniform(0, 0.08) * noise


def reduced(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 512, 512, 3) -> (n, 128, 128, 3): means of 4 x 4 pixels."""
    n, height, width, _ = pictures.shape
    blocks = pictures.reshape(n, height // REDUCTION, REDUCTION, width // REDUCTION, REDUCTION, 3)
    return blocks.mean((2, 4), dtype=np.float32).round().astype(np.uint8)
