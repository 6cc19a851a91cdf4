"""Plans for the imitated GPU in a bundle."""

import dataclasses
import json

from sdturbo import backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia import tensorrt as trt
from sdturbo.bundle.plans import Plan
from sdturbo_export.tensorrt.plan_writer import add_plans, plan_name


def with_plans(bundle, **key):
    """The bundle with a plan for every stage and batch size on the imitated GPU."""
    backend = backends.connect(BackendChoice("tensorrt"))
    plans = {}
    for name in bundle.stages:
        for size in bundle.batch_sizes:
            made_for = dataclasses.replace(trt.machine_key(backend.version, backend.gpu, bundle, name, size), **key)
            data = json.dumps({"graph": str(bundle.graph(name, size)), "distort": 0}).encode()
            plans[Plan(plan_name(made_for, name, size, data), name, size, made_for, 0.0, 1.0)] = data
    return add_plans(bundle, plans, {})
