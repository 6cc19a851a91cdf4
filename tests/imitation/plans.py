"""Plans for the imitated GPU in a bundle."""

import dataclasses
import json

from sdturbo import backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia import tensorrt as trt
from sdturbo.bundle.plans import ANY, Plan
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name


def with_plans(bundle, *, measured=(0.0, 1.0), **key):
    """The bundle with a plan for every stage and batch size on the imitated GPU. key: other fields of the plans' keys."""
    backend = backends.connect(BackendChoice("tensorrt"))
    plans = {}
    for name in bundle.stages:
        for size in bundle.batch_sizes:
            made_for = dataclasses.replace(
                trt.machine_key(backend.library, backend.gpu, bundle, bundle.graph(name, size)), **key
            )
            data = json.dumps({"graph": str(bundle.graph(name, size)), "distort": 0}).encode()
            plans[Plan(plan_name(made_for, name, size, data), name, size, made_for, *measured)] = data
    return add_plans(bundle, plans, {})


def with_plans_ahead(bundle, compute_capability="8.6,8.9,12.0", **key):
    """The same with plans that were compiled ahead, by TensorRT for RTX."""
    ahead = {"compute_capability": compute_capability, "gpu": ANY, "driver": ANY}
    return with_plans(bundle, measured=(None, None), **ahead, **key)
