"""Parts of both trainings: a clock that ends on time, one step, averaged weights, a state on disk, a log of lines."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from training.tiny.hardware import DEVICE, PARTS, arithmetic
from training.tiny.optimizer import optimizers

WARM_UP = 50  # steps
DECAY = 0.6  # of the time, at its end
SAVE_SECONDS = 60
LOG_STEPS = 20

Part = TypeVar("Part")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(slots=True)
class Clock:
    """Steps and seconds of a training across its interruptions. It is over when the budget of seconds is spent."""

    budget: float
    step: int = 0
    seconds: float = 0.0
    _before: float = 0.0
    _now: float = field(init=False)

    def __post_init__(self) -> None:
        self._now = time.monotonic()

    def tick(self) -> None:
        """One step is done."""
        now = time.monotonic()
        self._before, self.seconds = self.seconds, self.seconds + now - self._now
        self.step, self._now = self.step + 1, now

    def passed(self, interval: float) -> bool:
        """Whether a multiple of `interval` seconds, or the end, came with the last step."""
        return self.over or self.seconds // interval > self._before // interval

    @property
    def over(self) -> bool:
        return self.seconds >= self.budget

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 … 1."""
        return min(1.0, self.seconds / self.budget)

    @property
    def share(self) -> float:
        """Of the full learning rate: a short rise, a plateau, a straight fall to zero."""
        return min(1.0, (self.step + 1) / WARM_UP, (1 - self.progress) / DECAY)


class Run(Generic[Model]):
    """A training in the folder `out`: `model` learns, `mean` is the exponential mean of its weights."""

    def __init__(
        self, out: Path, model: Model, seconds: float, *, muon_lr: float, adamw_lr: float, keep: float
    ) -> None:
        """Go on with the state in `out`, or start. keep: share of the mean that a step keeps."""
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.model, self._keep = out, model.to(DEVICE), keep
        self.mean = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.rng, self.clock = np.random.default_rng(0), Clock(seconds)
        self._losses: list[float] = []
        self._pool = ThreadPoolExecutor(PARTS, initializer=torch.set_num_threads, initargs=(1,))
        self._optimizers, self._rates = optimizers(model, each=self._pool.map), (muon_lr, adamw_lr)
        if self._state.exists():
            self._resume()

    def step(self, loss: Callable[[Part], Tensor], parts: Sequence[Part]) -> float:
        """Learn from the mean loss of a batch's parts, and return it. Log and save when it is time."""
        learnt = [weight for weight in self.model.parameters() if weight.requires_grad]

        def slopes(part: Part) -> tuple[float, tuple[Tensor, ...]]:
            with arithmetic():
                value = loss(part)
            return value.item(), torch.autograd.grad(value, learnt)

        values, gradients = zip(*self._pool.map(slopes, parts), strict=True)
        for weight, *shares in zip(learnt, *gradients, strict=True):
            weight.grad = torch.stack(shares).mean(0)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.clock.share
            optimizer.step()
        self._average()
        self._losses.append(float(np.mean(values)))
        self.clock.tick()
        if self.clock.step % LOG_STEPS == 0:
            self.log("log.jsonl", loss=float(np.mean(self._losses)), share=self.clock.share)
            self._losses.clear()
        if self.clock.passed(SAVE_SECONDS):
            self.save()
        return float(np.mean(values))

    def log(self, name: str, **values: float) -> None:
        """Append one JSON object to the file of that name, and print it."""
        whole = {"step": self.clock.step, "seconds": self.clock.seconds} | values
        line = json.dumps({key: round(value, 5) for key, value in whole.items()})
        with (self.out / name).open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def points(self, name: str, value: str) -> list[tuple[float, float]]:
        """(minutes, value) of every line of a log that has it."""
        file = self.out / name
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [(line["seconds"] / 60, line[value]) for line in lines if value in line]

    def save(self) -> None:
        """Write everything that the next step depends on. An interruption leaves the file of before."""
        whole = {name: part.state_dict() for name, part in self._parts.items()}
        whole |= {"step": self.clock.step, "seconds": self.clock.seconds}
        whole |= {"torch_rng": torch.get_rng_state(), "numpy_rng": self.rng.bit_generator.state}
        partial = self._state.with_suffix(".partial")
        torch.save(whole, partial)
        partial.replace(self._state)

    def finish(self, name: str) -> Path:
        """Write the mean weights to the file of that name, and let the threads go."""
        self._pool.shutdown()
        file = self.out / name
        torch.save({key: value.cpu().clone() for key, value in self.mean.state_dict().items()}, file)
        return file

    def _resume(self) -> None:
        whole = torch.load(self._state, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(whole[name])
        self.clock.step, self.clock.seconds = whole["step"], whole["seconds"]
        torch.set_rng_state(whole["torch_rng"])
        self.rng.bit_generator.state = whole["numpy_rng"]

    @torch.no_grad()
    def _average(self) -> None:
        """mean ← k·mean + (1 - k)·weights, with a smaller k at first, so that the start is forgotten."""
        keep = min(self._keep, (1 + self.clock.step) / (10 + self.clock.step))
        mean, weights = tuple(self.mean.parameters()), tuple(self.model.parameters())
        torch._foreach_lerp_(mean, weights, 1 - keep)  # pyright: ignore[reportPrivateImportUsage] (there is no public one)

    @property
    def _state(self) -> Path:
        return self.out / "state.pt"

    @property
    def _parts(self) -> dict[str, Any]:
        muon, adamw = self._optimizers
        return {"model": self.model, "mean": self.mean, "muon": muon, "adamw": adamw}
