"""Plans compiled ahead, by a library whose builder needs no GPU. They are not run here, so no try is compared or timed.

Neither CUDA nor a driver is asked for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

from sdturbo.bundle import Bundle
from sdturbo.bundle.plans import ANY, Plan, PlanKey, read_plans
from sdturbo_export.progress import Progress
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name, require_disk
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions, trt_from_onnx
from sdturbo_export.tensorrt.trt_plans import SHARES, title

WORKSPACE_BYTES = 1 << 30  # that every RTX card has beside the weights


def compile_ahead(
    bundle: Bundle, options: PlanOptions, asked: Sequence[str] = (), *, say: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Compile every graph of the bundle that has no such plan yet. Returns the new bundle.

    options: with a library that compiles ahead. Its capabilities are set here. asked: the compute capabilities, by default
    all that the library compiles the bundle's precision for. `Library.targets` says which go into one plan.
    say: takes lines of progress.
    Each plan is in the bundle as soon as it is done. Raises BackendUnavailable, BuildError, InvalidRequest.
    """
    library = options.library
    library.require()
    groups = library.targets(asked, bundle.precision)
    if left_out := [name for name in library.capabilities() if not asked and library.lacks(name, bundle.precision)]:
        say(f"{library.title} has no matrix products in {bundle.precision} for {_listed(left_out)}, which is left out")
    known = {(plan.stage, plan.batch_size, plan.key) for plan in read_plans(bundle)}
    jobs = list(product(bundle.batch_sizes, bundle.sizes, bundle.stages, groups))
    titles = {
        job: f"{title(bundle, *job[:3])} for compute capability {_listed(job[3])}"
        for job in jobs
        if bundle.declared[job[2]].is_sized or job[1] == bundle.sizes[0]
    }
    progress = Progress({part: SHARES[name] for (_, _, name, _), part in titles.items()}, say)
    if options.workspace_bytes is None:
        options = replace(options, workspace_bytes=WORKSPACE_BYTES)
    for (size, pixels, name, group), part in titles.items():
        with progress.part(part):
            graph = bundle.graph(name, size, height=pixels[0], width=pixels[1])
            digest = bundle.graph_sha256(graph)
            assert digest is not None
            key = PlanKey(library.version, ",".join(group), ANY, ANY, digest, bundle.precision, library=library.name)
            if (name, size, key) in known:
                say("      there already")
                continue
            require_disk(bundle, graph, name)
            compiled = trt_from_onnx(graph, replace(options, capabilities=group), b"", progress.share)
            shown = pixels if bundle.declared[name].is_sized else (0, 0)
            plan = Plan(plan_name(key, name, size, compiled.plan), name, size, key, None, None, *shown)
            bundle = add_plans(bundle, {plan: compiled.plan}, {})
            say(f"      {len(compiled.plan) / 1e6:.1f} MB")
    return bundle


def _listed(group: Sequence[str]) -> str:
    return ", ".join(group)
