"""Compiled plans in a bundle: the machines that each is for, the choice among them, and their checked bytes.

A plan is code for one TensorRT, GPU and driver, or with TensorRT for RTX for every card of the listed compute capabilities.
Everything here happens before a library sees it. `bundle.json` lists plans under `compiled`. They are no part of the bundle's
id, for they draw the same pictures. Standard library only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MANIFEST, PLAIN
from sdturbo.bundle.fields import Fields, Json
from sdturbo.bundle.manifest import read_manifest
from sdturbo.errors import BundleError, PlanMismatch

COMPILED = "compiled"  # key in bundle.json, and directory in the bundle
TENSORRT, RTX = LIBRARIES = ("tensorrt", "tensorrt-rtx")  # RTX: TensorRT for RTX
ANY = "any"  # GPU and driver of a plan that was compiled ahead, for every card of its compute capabilities
HARDWARE = ("none", "same_compute_capability", "ampere_plus")  # TensorRT's HardwareCompatibilityLevel
_VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, slots=True)
class PlanKey:
    """The graph and machine that a plan is valid for.

    tensorrt: full version of the library, "10.16.1.11". compute_capability: "8.9", or "7.5,8.9" of a plan for both.
    gpu: its name, or `ANY`. driver: the CUDA version that it supports, "13.0", or `ANY`. onnx_sha256: `Bundle.graph_sha256`.
    precision: the graph's. hardware: one of `HARDWARE`. "ampere_plus" runs on any GPU from 8.0 up. version_compatible: runs
    on later TensorRT versions of the same major version. library: one of `LIBRARIES`.
    """

    tensorrt: str
    compute_capability: str
    gpu: str
    driver: str
    onnx_sha256: str
    precision: str
    hardware: str = "none"
    version_compatible: bool = False
    library: str = TENSORRT

    @property
    def ahead(self) -> bool:
        """Whether it was compiled ahead: for every GPU of its compute capabilities, and without a run on one."""
        return self.gpu == ANY

    @property
    def capabilities(self) -> tuple[str, ...]:
        return tuple(self.compute_capability.split(","))

    def differences(self, machine: PlanKey) -> list[str]:
        """The fields in which `machine`, the key of this machine, does not fit the plan."""
        portable = self.hardware != "none"
        later_driver = portable or self.version_compatible
        compatible = {
            "library": False,
            # versions of two libraries are not compared
            "tensorrt": self.library != machine.library
            or (self.version_compatible and _later_minor(machine.tensorrt, self.tensorrt)),
            "compute_capability": machine.compute_capability in self.capabilities
            or (self.hardware == "ampere_plus" and _at_least(machine.compute_capability, "8.0")),
            "gpu": self.gpu == ANY or portable,
            "driver": self.driver == ANY or (later_driver and _at_least(machine.driver, self.driver)),
            "onnx_sha256": False,
            "precision": False,
        }
        return [name for name, fits in compatible.items() if getattr(self, name) != getattr(machine, name) and not fits]


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan file in a bundle, for one graph of a stage as in `GraphName`. 0x0 is the bundle's default size.

    Measured when it was built: relative_l2, its distance to the graph on the CPU, and median_ms of a run. None if it was
    compiled ahead, for then it was not run.
    """

    file: str
    stage: str
    batch_size: int
    key: PlanKey
    relative_l2: float | None
    median_ms: float | None
    height: int = 0
    width: int = 0
    form: str = PLAIN

    def to_json(self) -> Json:
        """Its entry in `bundle.json`."""
        return asdict(self)


def read_plans(bundle: Bundle) -> list[Plan]:
    """The plans that the bundle lists and may use. Raises BundleError with every fault of the list."""
    if not bundle.with_plans:
        return []
    faults: list[str] = []
    listed = read_manifest(bundle.path).get(COMPILED, [])
    if not isinstance(listed, list):
        raise BundleError(bundle.path, [f"{COMPILED} is {type(listed).__name__}, expected a list"])
    plans: list[Plan] = []
    for i, entry in enumerate(cast("list[Any]", listed)):
        plan = _parse(entry, f"{COMPILED}[{i}]", faults)
        if plan is not None:
            plans.append(plan)
            faults += _plan_faults(bundle, plan, f"{COMPILED}[{i}]")
    if faults:
        raise BundleError(bundle.path, [*faults, "compile its plans again (`sdturbo-export trt`)"])
    return plans


def choose_plan(bundle: Bundle, plans: Sequence[Plan], stage: str, batch_size: int, machine: PlanKey) -> Plan:
    """The fastest plan of a stage that may run on `machine` (its graph's hash included).

    Plans that were compiled ahead have no time and come last, those for fewer compute capabilities first.
    Raises PlanMismatch, with the differences to the nearest plan and the command that makes the right one.
    """
    candidates = [plan for plan in plans if (plan.stage, plan.batch_size) == (stage, batch_size)]
    fitting = [plan for plan in candidates if not plan.key.differences(machine)]
    if fitting:
        times = {plan: math.inf if plan.median_ms is None else plan.median_ms for plan in fitting}
        return min(fitting, key=lambda plan: (times[plan], len(plan.key.capabilities)))
    graph = f"the {stage} at batch size {batch_size}"
    message = f"The bundle {bundle.path} holds no TensorRT plan for {graph}."
    if candidates:
        nearest = min(candidates, key=lambda plan: len(plan.key.differences(machine)))
        names = nearest.key.differences(machine)
        values = [f"{name} is {getattr(machine, name)}, not {getattr(nearest.key, name)}" for name in names]
        message = f"The plan {nearest.file} for {graph} was compiled for something else: {' and '.join(values)}."
    if not bundle.with_plans:
        raise PlanMismatch(
            f"The plans of {bundle.path} are not used. They are code, so they come with a commit alone: give it as revision,"
            " 40 hex digits. ONNX Runtime (backend 'cuda') needs none."
        )
    remedy = f"`sdturbo-export trt {bundle.path} --library {machine.library}` compiles plans for this machine."
    for other in sorted({plan.key.library for plan in candidates} - {machine.library}):
        remedy += f" Or `pip install '.[{other}]'` in a clone of sdturbo, and load the plans that are there."
    raise PlanMismatch(f"{message} {remedy} ONNX Runtime (backend 'cuda') needs none.")


def plan_bytes(bundle: Bundle, plan: Plan) -> bytes:
    """The plan's bytes. A plan is code, so BundleError is raised unless they are those that the bundle lists."""
    expected = bundle.files.get(plan.file)
    if expected is None:
        raise BundleError(bundle.path, [f"{plan.file} is not among its files, so it is not loaded"])
    try:
        data = (bundle.path / plan.file).read_bytes()
    except OSError as error:
        raise BundleError(bundle.path, [f"{plan.file} cannot be read: {error}"]) from error
    if len(data) != expected[1]:
        raise BundleError(bundle.path, [f"{plan.file} has {len(data)} bytes, expected {expected[1]}: truncated"])
    if hashlib.sha256(data).hexdigest() != expected[0]:
        raise BundleError(bundle.path, [f"{plan.file} was altered: its sha256 is not that of {MANIFEST}"])
    return data


def _parse(entry: Any, where: str, faults: list[str]) -> Plan | None:
    """A plan from its JSON, or None with the faults noted."""
    known = len(faults)
    plan = Fields(entry, where, faults).read(Plan)
    if len(faults) == known:
        plan["key"] = PlanKey(**Fields(plan["key"], f"{where}.key", faults).read(PlanKey))
    return Plan(**plan) if len(faults) == known else None


def _plan_faults(bundle: Bundle, plan: Plan, where: str) -> list[str]:
    faults: list[str] = []
    if plan.file not in bundle.files:
        faults.append(f"{where}: {plan.file} is not among the bundle's files")
    stage = bundle.stages.get(plan.stage)  # its graphs, for `bundle` may be cut down to some of its batch sizes
    if stage is None or plan.batch_size not in {graph.batch_size for graph in stage.graphs}:
        faults.append(f"{where}: the bundle has no stage {plan.stage} at batch size {plan.batch_size}")
    if plan.key.hardware not in HARDWARE:
        faults.append(f"{where}: hardware is {plan.key.hardware!r}, expected one of {', '.join(HARDWARE)}")
    if plan.key.library not in LIBRARIES:
        faults.append(f"{where}: library is {plan.key.library!r}, expected one of {', '.join(LIBRARIES)}")
    for name in ("tensorrt", "compute_capability", "driver"):
        value = getattr(plan.key, name)
        versions = plan.key.capabilities if name == "compute_capability" else (value,)
        is_any = name == "driver" and plan.key.ahead and value == ANY
        if not is_any and not all(map(_VERSION.fullmatch, versions)):
            faults.append(f"{where}: {name} is {value!r}, expected a version")
    for name in ("relative_l2", "median_ms"):
        if getattr(plan, name) is None and not plan.key.ahead:
            faults.append(f"{where}: {name} is None, expected a number, for the plan was not compiled ahead")
    return faults


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _at_least(version: str, least: str) -> bool:
    return _numbers(version) >= _numbers(least)


def _later_minor(version: str, built: str) -> bool:
    """Source: TensorRT 11 support matrix, "Engine Portability": newer versions within the same major version."""
    return _numbers(version)[0] == _numbers(built)[0] and _at_least(version, built)
