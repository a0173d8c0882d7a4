"""Whether a compiled plan fits this machine, by the manifest alone: TensorRT has no such check before it loads one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engines.bundle import Bundle, BundleFile
from engines.cuda import GpuInfo
from engines.errors import EngineError
from engines.parity import rebuild_command


@dataclasses.dataclass(frozen=True, slots=True)
class PlanHost:
    """What a plan was built on, or is to run on."""

    tensorrt: str
    """Version, such as "11.0.0.1"."""
    gpu: str
    compute_capability: str
    driver_cuda: str
    """The newest CUDA version that the driver knows."""

    @classmethod
    def here(cls, tensorrt_version: str, gpu: GpuInfo) -> "PlanHost":
        """Describe this machine."""
        return cls(tensorrt_version, gpu.name, gpu.compute_capability, gpu.driver_cuda)

    @property
    def software(self) -> dict[str, str]:
        """The manifest's `build.software`."""
        return {"tensorrt": self.tensorrt, "driver_cuda": self.driver_cuda}

    @property
    def hardware(self) -> dict[str, Any]:
        """The manifest's `build.hardware`."""
        return {"gpu": self.gpu, "compute_capability": self.compute_capability}


def require_fit(bundle: Bundle, file: BundleFile, here: PlanHost) -> None:
    """Refuse a plan that was built for another TensorRT, GPU or driver.

    Raises:
        EngineError: It does not fit; the text says what it was built on, what this is, and how to build it anew.
    """
    if (trouble := misfit(file.build or {}, here)) is not None:
        raise EngineError(f"{bundle.path / file.name} {trouble}; {rebuild_command(bundle, file)}")


def misfit(build: Mapping[str, Any], here: PlanHost) -> str | None:
    """Return why a plan with this manifest entry cannot run here; None: it can."""
    software, hardware, options = (build.get(key) or {} for key in ("software", "hardware", "options"))
    try:
        there = PlanHost(software["tensorrt"], hardware["gpu"], hardware["compute_capability"], software["driver_cuda"])
        driver_there, driver_here = _numbers(there.driver_cuda), _numbers(here.driver_cuda)
        version_there, version_here = _numbers(there.tensorrt), _numbers(here.tensorrt)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "has no record in the manifest of what it was built on"
    if not _is_version_served(version_there, version_here, options.get("version_compatible") is True):
        return f"was built by TensorRT {there.tensorrt}, this is {here.tensorrt}"
    if not _is_gpu_served(there, here, str(options.get("hardware_compatibility", "none"))):
        return (
            f"was built on {there.gpu} (compute capability {there.compute_capability}), this is {here.gpu} "
            f"({here.compute_capability})"
        )
    if driver_here < driver_there:
        return (
            f"was built with a driver for CUDA {there.driver_cuda}, this machine's is older, for {here.driver_cuda}: "
            "update it"
        )
    return None


def _is_version_served(there: tuple[int, ...], here: tuple[int, ...], is_compatible: bool) -> bool:
    """A version compatible plan runs on what built it and later, of the same major version or of the next.

    Source: TensorRT 11.4.1, Support Matrix, Engine Portability: of pairs across major versions 10 to 11 is served (and
    8 to 10, which this project does not build for), no other.
    """
    if not is_compatible:
        return there == here
    return there <= here and (there[0] == here[0] or (there[0], here[0]) == (10, 11))


def _is_gpu_served(there: PlanHost, here: PlanHost, level: str) -> bool:
    if level == "ampere-plus":
        return _numbers(here.compute_capability) >= (8, 0)
    if level == "same-compute-capability":
        return here.compute_capability == there.compute_capability
    return (here.gpu, here.compute_capability) == (there.gpu, there.compute_capability)


def _numbers(version: str) -> tuple[int, ...]:
    """Return "11.0.0.1" as numbers; what follows a plus sign or a letter is left out.

    Raises:
        ValueError: Nothing is left.
    """
    numbers = tuple(int(part) for part in version.split("+")[0].split(".") if part.isdecimal())
    if not numbers:
        raise ValueError(f"{version!r} is no version")
    return numbers
