"""From the float32 stages of a build to denoiser and decoder in int8, measured and judged."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from sdturbo import backends
from sdturbo.backends import Backend
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export import stage_store
from sdturbo_export.errors import BuildError
from sdturbo_export.exchange import unfinished
from sdturbo_export.graphs.onnx_from_torch import WeightFile
from sdturbo_export.int8.layers import activations, layers_of
from sdturbo_export.int8.measurements import made_from, remembered
from sdturbo_export.int8.prompts import Prompts
from sdturbo_export.int8.qdq import insert_qdq, write_graph
from sdturbo_export.int8.quality import Score, require_quality, score, summary
from sdturbo_export.int8.ranges import measure_ranges
from sdturbo_export.int8.sensitivity import measure_damage
from sdturbo_export.int8.trajectories import SeededPrompt, Trajectory, seeded, trajectory
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import INT8_STAGES, relative_l2
from sdturbo_export.proof.parity import engine_output, golden_output
from sdturbo_export.proof.walk import Arrays, Walk, run_of
from sdturbo_export.stage_store import StoredStage, key_of
from sdturbo_export.stages import StageDefinition

LIMIT = 0.01  # relative L2 error of the stage's output: a layer that does more damage alone stays in float32
CALIBRATION_PICTURES = 16  # at least: fewer prompts are drawn with several seeds
CALIBRATION_SEED = 1000  # the judging seeds count from 0
# Pictures whose inputs of a stage damage is measured on: that of 2 steps, which does most, and those of 1 and of 3.
_POINTS = (1, 0, 2)
_DRAWING = ("text_encoder", *INT8_STAGES)


@dataclass(frozen=True, slots=True)
class Quantized:
    """The stages in int8, `quality` for bundle.json and `report` for quantization.json."""

    stages: Mapping[str, StoredStage]
    quality: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Int8Build:
    """One build. `exact` are its float32 stages. `golden_walk` goes on with the int8 stages."""

    definitions: Mapping[str, StageDefinition]
    exact: Mapping[str, StoredStage]
    tokenizer: PromptTokenizer
    prompts: Prompts
    golden_walk: Walk
    store: Path
    progress: Progress

    def quantize(self, *, allow_low_quality: bool) -> Quantized:
        """Measure, write and judge, or take from the store what an earlier build did. Raises QualityError."""
        measured = self._measure()
        stages = dict(self.exact)
        layers: dict[str, Any] = {}
        for name in INT8_STAGES:
            damage = measured[name]["damage"]
            in_fp32 = [layer for layer, value in damage.items() if value > LIMIT]
            self.progress.say(f"      {name}: {len(damage) - len(in_fp32)} layers in int8, {len(in_fp32)} stay in fp32")
            stages[name] = stage = self._stage(name, measured[name], in_fp32)
            self.golden_walk.outputs[name] = golden_output(self.definitions[name], stage, "int8", self.golden_walk)
            layers[name] = {"relative_l2": stage.parity, "kept_fp32": in_fp32, "damage": damage}
        scores = self._judge(stages)
        quality = summary(scores)
        self.progress.say(
            f"      median of {len(scores)} prompts: {quality['median_psnr_db']} dB, SSIM {quality['median_ssim']}"
        )
        require_quality(quality, self.definitions["decoder"].checkpoint.name, allow_low_quality=allow_low_quality)
        report = {
            "damage_limit": LIMIT,
            "calibration": list(self.prompts.calibration),
            "stages": layers,
            "pictures": [asdict(picture) for picture in scores],
        }
        return Quantized({name: stages[name] for name in INT8_STAGES}, quality, report)

    def _measure(self) -> dict[str, Any]:
        """stage -> {ranges: activation -> (lo, hi), damage: layer -> relative L2 error}."""
        prompts = seeded(self.prompts.calibration, CALIBRATION_SEED, CALIBRATION_PICTURES)
        exact = {name: self.exact[name] for name in _DRAWING}
        asked = [asdict(prompt) for prompt in prompts]
        parts = made_from("int8-layers", exact, prompts=asked, points=_POINTS, limit=LIMIT)
        return remembered(self.store, parts, lambda: self._measure_layers(prompts))

    def _measure_layers(self, prompts: Sequence[SeededPrompt]) -> dict[str, Any]:
        trajectories = list(self._draw(self.exact, prompts, "fp32"))
        inputs: dict[str, list[Arrays]] = {
            "denoiser": [step for drawn in trajectories for step in drawn.denoiser],
            "decoder": [drawn.decoder for drawn in trajectories],
        }
        at_points = [trajectories[i] for i in _POINTS]
        points: dict[str, list[Arrays]] = {
            "denoiser": [drawn.denoiser[len(drawn.denoiser) // 2] for drawn in at_points],
            "decoder": [drawn.decoder for drawn in at_points],
        }
        graphs = {name: self.exact[name].graph(1, self.golden_walk.size) for name in INT8_STAGES}
        layers = {name: layers_of(ir.load(graph)) for name, graph in graphs.items()}
        total, done = sum(map(len, layers.values())), itertools.count(1)
        measured: dict[str, Any] = {}
        for name, graph in graphs.items():
            self.progress.say(
                f"      {name}: ranges over {len(inputs[name])} runs, then each of {len(layers[name])} layers alone"
            )
            ranges = measure_ranges(graph, activations(layers[name]), inputs[name])
            damage = measure_damage(
                graph, layers[name], ranges, points[name], LIMIT, lambda: self.progress.share(next(done) / total)
            )
            measured[name] = {"ranges": ranges, "damage": damage}
        return measured

    def _stage(self, name: str, measured: Mapping[str, Any], in_fp32: Collection[str]) -> StoredStage:
        """The stage with every layer but `in_fp32` in int8, at each batch size: from the store, or written to it."""
        exact, ranges = self.exact[name], measured["ranges"]
        key = key_of(made_from(f"int8-{name}", {name: exact}, ranges=ranges, in_fp32=sorted(in_fp32)))
        if stored := stage_store.find(self.store, key):
            return stored
        with unfinished(self.store / key) as partial:
            partial.mkdir()
            with WeightFile(partial / f"{name}.weights") as weights:
                for graph in exact.plain.values():
                    model = ir.load(exact.path / graph)
                    layers = layers_of(model)
                    if [layer.name for layer in layers] != list(measured["damage"]):
                        raise BuildError(
                            f"The layers of {graph} have other names than those at batch size 1, where int8 was measured."
                            " Build with batch size 1 alone, and please report this."
                        )
                    insert_qdq(model, [layer for layer in layers if layer.name not in in_fp32], ranges)
                    write_graph(model, partial / graph, weights)
            inputs, shown = (
                self.golden_walk.inputs(name),
                exact.graph(len(self.golden_walk.seeds), self.golden_walk.size),
            )
            output = self._output(name, partial / shown.name, inputs, "int8")
            expected = self._output(name, shown, inputs, "fp32")
            return stage_store.publish(
                self.store,
                key,
                partial,
                graphs=exact.plain,
                parity=relative_l2(output, expected),
                inputs=inputs,
                output=output,
            )

    def _output(self, name: str, graph: Path, inputs: Arrays, precision: str) -> NDArray[Any]:
        return engine_output(
            self.definitions[name], graph, inputs, _backend(precision), self.store, self.golden_walk.size
        )

    def _judge(self, stages: Mapping[str, StoredStage]) -> list[Score]:
        """Every judging prompt's picture against that of the float32 stages."""
        prompts = seeded(self.prompts.judging, 0)
        drawing = {f"exact-{name}": self.exact[name] for name in INT8_STAGES} | {
            name: stages[name] for name in _DRAWING
        }
        parts = made_from("int8-quality", drawing, prompts=[asdict(prompt) for prompt in prompts])

        def measure() -> list[dict[str, Any]]:
            expected = [drawn.picture for drawn in self._draw(self.exact, prompts, "fp32")]
            pictures = (drawn.picture for drawn in self._draw(stages, prompts, "int8"))
            return [asdict(score(*compared)) for compared in zip(prompts, pictures, expected, strict=True)]

        self.progress.say(f"      pictures of {len(prompts)} prompts in int8 and in fp32")
        return [Score(**values) for values in remembered(self.store, parts, measure)]

    def _draw(
        self, stages: Mapping[str, StoredStage], prompts: Sequence[SeededPrompt], precision: str
    ) -> Iterator[Trajectory]:
        backend = _backend(precision)
        described, schedule = self.golden_walk.stages, self.golden_walk.schedule
        graphs = {name: stages[name].graph(1, self.golden_walk.size) for name in _DRAWING}
        sessions = {name: backend.session(graphs[name], described[name], 1) for name in _DRAWING}
        for prompt in prompts:
            ids = self.tokenizer(prompt.prompt).input_ids
            walk = Walk(described, schedule, prompt.steps, ids, [prompt.seed])
            yield trajectory(walk.visits(run_of(sessions), until="decoder"))


def _backend(precision: str) -> Backend:
    return backends.connect(backends.BackendChoice("onnxruntime", precision=precision))
