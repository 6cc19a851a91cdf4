"""From the float32 stages of a build to denoiser and decoder in int8, measured and judged."""

from __future__ import annotations

import itertools
import tempfile
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
from sdturbo_export.int8.layers import activations, layers_of
from sdturbo_export.int8.measurements import key_of, made_from, remembered
from sdturbo_export.int8.prompts import Prompts
from sdturbo_export.int8.qdq import insert_qdq, write_graph
from sdturbo_export.int8.quality import Score, require_quality, score, summary
from sdturbo_export.int8.ranges import measure_ranges
from sdturbo_export.int8.sensitivity import measure_damage
from sdturbo_export.int8.trajectories import Arrays, Request, Trajectory, requests, trajectory
from sdturbo_export.onnx_from_torch import WeightFile
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import INT8_STAGES, relative_l2
from sdturbo_export.proof.golden import digest, golden_inputs
from sdturbo_export.proof.parity import engine_output, golden_output
from sdturbo_export.proof.walk import Walk, run_of
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stages import PLANS, stage_of
from sdturbo_export.weights.checkpoint import Checkpoint

LIMIT = 0.01  # relative L2 of the stage's output: a layer that does more damage alone stays in float32
CALIBRATION_REQUESTS = 16  # at least: fewer prompts are drawn with several seeds
CALIBRATION_SEED = 1000  # the judging requests count from 0
# requests whose inputs of a stage damage is measured on: of 2 steps, which does most, of 1 and of 3
_POINTS = (1, 0, 2)
_DRAWING = ("text_encoder", *INT8_STAGES)
_PLANS = {plan.name: plan for plan in PLANS}


@dataclass(frozen=True, slots=True)
class Quantized:
    """The stages in int8; `quality` for bundle.json; `report` for quantization.json."""

    stages: Mapping[str, StoredStage]
    quality: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Int8Build:
    """One build. `exact` are its float32 stages; `golden` is carried on with the int8 ones."""

    checkpoint: Checkpoint
    exact: Mapping[str, StoredStage]
    tokenizer: PromptTokenizer
    prompts: Prompts
    golden: Walk
    store: Path
    progress: Progress

    def quantize(self, *, allow_low_quality: bool) -> Quantized:
        """Measure, write and judge; what is in the store from an earlier build is not done again. Raises QualityError."""
        measured = self._measure()
        stages = dict(self.exact)
        layers: dict[str, Any] = {}
        for name in INT8_STAGES:
            damage = measured[name]["damage"]
            kept = [layer for layer, value in damage.items() if value > LIMIT]
            self.progress.say(f"      {name}: {len(damage) - len(kept)} layers in int8, {len(kept)} stay in fp32")
            stages[name] = self._stage(name, measured[name], kept)
            self.golden.outputs[name] = golden_output(_PLANS[name], self.checkpoint, stages[name], "int8", self.golden)
            layers[name] = {"relative_l2": stages[name].parity, "kept_fp32": kept, "damage": damage}
        scores = self._judge(stages)
        found = summary(scores)
        self.progress.say(
            f"      median of {len(scores)} prompts: {found['median_psnr_db']} dB, SSIM {found['median_ssim']}"
        )
        require_quality(found, self.checkpoint.name, allow_low_quality=allow_low_quality)
        report = {
            "damage_limit": LIMIT,
            "calibration": list(self.prompts.calibration),
            "stages": layers,
            "pictures": [asdict(one) for one in scores],
        }
        return Quantized({name: stages[name] for name in INT8_STAGES}, found, report)

    def _measure(self) -> dict[str, Any]:
        """stage -> {ranges: activation -> (lo, hi), damage: layer -> relative L2}."""
        wanted = requests(self.prompts.calibration, CALIBRATION_SEED, CALIBRATION_REQUESTS)
        exact = {name: self.exact[name] for name in ("text_encoder", *INT8_STAGES)}
        parts = made_from("int8-layers", exact, requests=[asdict(one) for one in wanted], points=_POINTS, limit=LIMIT)
        return remembered(self.store, parts, lambda: self._measure_layers(wanted))

    def _measure_layers(self, wanted: list[Request]) -> dict[str, Any]:
        seen = list(self._draw(self.exact, wanted, "fp32"))
        inputs: dict[str, list[Arrays]] = {
            "denoiser": [step for one in seen for step in one.denoiser],
            "decoder": [one.decoder for one in seen],
        }
        points = {
            "denoiser": [seen[i].denoiser[len(seen[i].denoiser) // 2] for i in _POINTS],
            "decoder": [seen[i].decoder for i in _POINTS],
        }
        graphs = {name: self.exact[name].path / self.exact[name].graphs[1] for name in INT8_STAGES}
        found = {name: layers_of(ir.load(graph)) for name, graph in graphs.items()}
        total, done = sum(map(len, found.values())), itertools.count(1)
        measured: dict[str, Any] = {}
        for name, layers in found.items():
            self.progress.say(
                f"      {name}: ranges over {len(inputs[name])} runs, then each of {len(layers)} layers alone"
            )
            ranges = measure_ranges(graphs[name], activations(layers), inputs[name])
            damage = measure_damage(
                graphs[name], layers, ranges, points[name], LIMIT, lambda: self.progress.share(next(done) / total)
            )
            measured[name] = {"ranges": ranges, "damage": damage}
        return measured

    def _stage(self, name: str, measured: Mapping[str, Any], kept: Collection[str]) -> StoredStage:
        """The stage with every layer but `kept` in int8, at each batch size: from the store, or written to it."""
        exact, ranges = self.exact[name], measured["ranges"]
        key = key_of(made_from(f"int8-{name}", {name: exact}, ranges=ranges, kept=sorted(kept)))
        if found := stage_store.find(self.store, key):
            return found
        with unfinished(self.store / key) as partial:
            partial.mkdir()
            with WeightFile(partial / f"{name}.weights") as weights:
                for graph in exact.graphs.values():
                    model = ir.load(exact.path / graph)
                    layers = layers_of(model)
                    if [layer.name for layer in layers] != list(measured["damage"]):
                        raise BuildError(
                            f"The layers of {graph} have other names than those at batch size 1, where int8 was measured."
                            " Build with batch size 1 alone, and please report this."
                        )
                    insert_qdq(model, [layer for layer in layers if layer.name not in kept], ranges)
                    write_graph(model, partial / graph, weights)
            graph = exact.graphs[len(self.golden.seeds)]
            output = self._golden(name, partial / graph, "int8")
            expected = self._golden(name, exact.path / graph, "fp32")
            return stage_store.publish(
                self.store,
                key,
                partial,
                graphs=exact.graphs,
                parity=relative_l2(output, expected),
                inputs_sha256=digest(golden_inputs(self.golden, name)),
                output=output,
            )

    def _golden(self, name: str, graph: Path, precision: str) -> NDArray[Any]:
        inputs = golden_inputs(self.golden, name)
        with tempfile.TemporaryDirectory(dir=self.store, prefix=".parity-") as workspace:
            return engine_output(_PLANS[name], self.checkpoint, graph, inputs, _engine(precision), Path(workspace))

    def _judge(self, stages: Mapping[str, StoredStage]) -> list[Score]:
        """Every judging prompt's picture against that of the float32 stages."""
        wanted = requests(self.prompts.judging, 0)
        drawn = {f"exact-{name}": self.exact[name] for name in INT8_STAGES} | {name: stages[name] for name in _DRAWING}
        parts = made_from("int8-quality", drawn, requests=[asdict(request) for request in wanted])

        def measure() -> list[dict[str, Any]]:
            expected = [one.picture for one in self._draw(self.exact, wanted, "fp32")]
            found = (one.picture for one in self._draw(stages, wanted, "int8"))
            return [asdict(score(*three)) for three in zip(wanted, found, expected, strict=True)]

        self.progress.say(f"      pictures of {len(wanted)} prompts in int8 and in fp32")
        return [Score(**one) for one in remembered(self.store, parts, measure)]

    def _draw(
        self, stages: Mapping[str, StoredStage], wanted: Sequence[Request], precision: str
    ) -> Iterator[Trajectory]:
        backend = _engine(precision)
        described = {name: stage_of(_PLANS[name], self.checkpoint) for name in _DRAWING}
        sessions = {
            name: backend.session(stages[name].path / stages[name].graphs[1], described[name], 1) for name in _DRAWING
        }
        for request in wanted:
            ids = self.tokenizer(request.prompt).input_ids
            walk = Walk(described, self.checkpoint.schedule.rows, request.steps, ids, [request.seed])
            yield trajectory(walk.visits(run_of(sessions), until="decoder"))


def _engine(precision: str) -> Backend:
    return backends.connect(backends.EngineChoice("onnxruntime", precision=precision))
