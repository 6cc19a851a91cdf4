"""A directory that describes itself in `bundle.json`. Standard library only.

Reading validates the whole directory and reports every fault at once. A file is hashed before anything opens it.
engine/README.md, "The bundle", lists the fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdturbo.bundle.description import MANIFEST, PLAIN, Golden, GraphName, ScheduleRow, Stage, rows_of
from sdturbo.bundle.external_data import external_locations
from sdturbo.bundle.hub_cache import is_inside, repository_id, repository_of, snapshot_in
from sdturbo.bundle.manifest import parse_manifest, read_manifest
from sdturbo.cache.hashes import HashMemory
from sdturbo.errors import BundleError, InvalidRequest
from sdturbo.files import sha256_file


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle. `files` maps each path inside it to (sha256, size in bytes).

    sizes: (height, width) in pixels of the pictures that it can draw. The first is the default, `height` and `width`.
    declared: the stages with symbols for the picture's size. stages: those at the default size.
    weight_format: one of `WEIGHT_FORMATS`, to which the weights of float32 graphs are rounded.
    quality: the distance of int8 pictures from those in fp32. Empty for other precisions.
    trust_unchanged: as for `load`. with_plans: False if its compiled plans are not used, for nobody named a commit of it.
    """

    path: Path
    bundle_id: str
    model: Mapping[str, Any]
    precision: str
    weight_format: str
    sizes: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]
    schedule: tuple[ScheduleRow, ...]
    declared: Mapping[str, Stage]
    stages: Mapping[str, Stage]
    files: Mapping[str, tuple[str, int]]
    parity: Mapping[str, Any]
    golden: Golden
    quality: Mapping[str, Any]
    trust_unchanged: bool = False
    with_plans: bool = True

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trust_unchanged: bool = False,
        only: Collection[str] | None = None,
        runs_graphs: bool = True,
    ) -> Bundle:
        """Read and validate the bundle at `path`. Raises BundleError with all faults.

        path: its directory, or a repository's directory in the cache of huggingface_hub.
        trust_unchanged: a large file is not hashed again for a week while it is unchanged (`HashMemory`).
        only: names of the files to look at, all graphs among them. Others may be missing. None looks at all.
        runs_graphs: False if compiled plans alone will run. Weights may then be missing.
        """
        bundle = cls.described(path, trust_unchanged=trust_unchanged)
        names = bundle.files if only is None else only
        faults = bundle._file_faults(names) or bundle._graph_faults(names if runs_graphs else bundle.files)
        if faults:
            raise BundleError(bundle.path, faults)
        return bundle

    @classmethod
    def described(cls, path: str | Path, *, trust_unchanged: bool = False) -> Bundle:
        """The bundle as its manifest describes it. No other file is looked at. Arguments and errors are those of `load`."""
        if not isinstance(path, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"Got a bundle path of type {type(path).__name__}, expected a directory's path.")

        try:
            root, fault = snapshot_in(Path(path), MANIFEST)
        except OSError as error:
            raise BundleError(path, [f"it cannot be opened: {error}"]) from error
        if fault is not None:
            raise BundleError(root, [fault])
        faults: list[str] = []
        try:
            fields = parse_manifest(read_manifest(root), faults)
        except RecursionError as error:
            raise BundleError(root, [f"{MANIFEST} cannot be read: it is nested too deeply"]) from error
        if fields is None:
            raise BundleError(root, faults)
        return cls(path=root, trust_unchanged=trust_unchanged, **fields)

    @property
    def decoder(self) -> str:
        """The autoencoder that draws: "AutoencoderKL", or "AutoencoderTiny" and a name."""
        return str(self.model.get("decoder", "AutoencoderKL"))

    def steps(self, num_inference_steps: int) -> range:
        """The rows of the schedule for a run of that many steps, as values for the graphs' `step` input."""
        return rows_of(self.schedule, num_inference_steps)

    @property
    def height(self) -> int:
        return self.sizes[0][0]

    @property
    def width(self) -> int:
        return self.sizes[0][1]

    def stages_at(self, height: int, width: int) -> dict[str, Stage]:
        """The stages by name, for pictures of that size in pixels."""
        return {name: stage.at(height, width) for name, stage in self.declared.items()}

    def graph(
        self, stage: str, batch_size: int, *, height: int | None = None, width: int | None = None, form: str = PLAIN
    ) -> Path:
        """The ONNX file of a stage, of the default size without height and width. Raises InvalidRequest if there is none."""
        name = GraphName(batch_size, height or self.height, width or self.width, form)
        file = self.stages[stage].graph(name)
        if file is None:
            names = ", ".join(map(str, self.stages[stage].graphs))
            raise InvalidRequest(f"The bundle {self.path} has no graph {name} of the {stage}. It has {names}.")
        return self.path / file

    def has_form(self, form: str) -> bool:
        """Whether every stage has graphs of that form, at every batch size and picture size."""
        return all(
            stage.graph(GraphName(batch_size, height, width, form)) is not None
            for stage in self.stages.values()
            for batch_size in self.batch_sizes
            for height, width in self.sizes
        )

    def graph_files(self, graph: Path) -> list[str]:
        """The names in the bundle of a graph and of its weight files. Empty for other graphs."""
        if not graph.is_relative_to(self.path) or (name := graph.relative_to(self.path).as_posix()) not in self.files:
            return []
        locations = external_locations(graph)
        return [name, *sorted(str(PurePosixPath(name).parent / location) for location in locations)]

    def graph_sha256(self, graph: Path) -> str | None:
        """Hex SHA-256 over the listed hashes of a graph and of its weight files. None for other graphs."""
        names = self.graph_files(graph)
        text = "\n".join(self.files[name][0] for name in names)
        return hashlib.sha256(text.encode()).hexdigest() if names else None

    def _file_faults(self, names: Collection[str]) -> list[str]:
        faults: list[str] = []
        present: list[str] = []
        to_delete: list[Path] = []
        repository = repository_of(self.path)
        root = self.path.resolve()
        for name, (_, size) in self.files.items():
            if name not in names:
                continue
            file = self.path / name
            try:
                is_missing = not file.is_file()
            except OSError as error:
                faults.append(f"{name} cannot be read: {error}")
                continue
            if is_missing:
                faults.append(f"{name} is missing")
            elif not (file.resolve().is_relative_to(root) or (repository and is_inside(repository, file))):
                to_delete.append(file)
                faults.append(f"{name} leads out of the bundle, to {file.resolve()}")
            elif file.stat().st_size != size:
                to_delete.append(file.resolve())
                faults.append(f"{name} has {file.stat().st_size} bytes, expected {size}: truncated or replaced")
            else:
                present.append(name)
        try:
            with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
                sha256 = HashMemory().sha256 if self.trust_unchanged else sha256_file
                digests = list(pool.map(sha256, [self.path / name for name in present]))
        except OSError as error:
            return [*faults, f"cannot be read: {error}"]
        for name, digest in zip(present, digests, strict=True):
            if digest != self.files[name][0]:
                to_delete.append((self.path / name).resolve())
                faults.append(f"{name} was altered: sha256 {digest[:16]}…, expected {self.files[name][0][:16]}…")
        if faults and repository is not None:
            places = ", ".join(sorted(set(map(str, to_delete))))
            first = f"delete {places}, then " if places else ""
            faults.append(f"{first}name it by its Hub id, {repository_id(repository)}, to fetch what is missing")
        elif faults:
            faults.append("build the bundle again (`sdturbo-export build`) or copy it again, whole")
        return faults

    def _graph_faults(self, checked: Collection[str]) -> list[str]:
        """checked: names of the files of which the graphs may read weights."""
        faults: list[str] = []
        for graph in sorted({graph for stage in self.stages.values() for graph in stage.graphs.values()}):
            try:
                locations = external_locations(self.path / graph)
            except OSError as error:
                faults.append(f"{graph} cannot be read: {error}")
                continue
            except ValueError as error:
                faults.append(f"{graph} is not an ONNX file: {error}")
                continue
            for location in sorted(locations):
                name = str(PurePosixPath(graph).parent / location)
                if name not in self.files:
                    faults.append(f"{graph} reads weights from {location!r}, which is not a file of this bundle")
                elif name not in checked:
                    faults.append(f"{graph} reads weights from {name}, which was not checked: weights belong in onnx")
        return faults
