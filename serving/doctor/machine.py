"""A machine as the checks see it: probed once, then data."""

from __future__ import annotations

from pydantic import Field

from serving.values import Value

UNLIMITED = -1


class Gpu(Value):
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int = Field(gt=0)
    """What CUDA can give out: all of it, less what the driver reserves."""
    free_bytes: int = Field(ge=0)
    compute_capability: tuple[int, int] | None = None
    nvlinks: int = Field(0, ge=0)
    """Links that are up, to another GPU or to a switch."""


class GpuPair(Value):
    """How two GPUs of the machine reach each other."""

    first: int
    second: int
    nvlink: bool
    p2p: bool
    """Each reads and writes the other's memory, by NVLink or PCIe."""
    path: str = ""
    """The nearest thing that both hang on, as `nvidia-smi topo -m` names it."""


class RdmaPort(Value):
    """A port of an InfiniBand or RoCE adapter."""

    name: str
    """Device and port: mlx5_0/1."""
    state: str
    rate_gbps: float = Field(0, ge=0)
    link_layer: str = ""


class ReadRate(Value):
    """How fast one process reads a file from front to back."""

    bytes_per_s: float = Field(gt=0)
    read_bytes: int = Field(gt=0)
    file: str
    direct: bool
    """Past the page cache; else the file may have been in memory."""


class Space(Value):
    """Room on the file system of a path."""

    path: str
    free_bytes: int = Field(ge=0)


class Machine(Value):
    """Hardware, limits and software; None is what could not be found out."""

    gpus: tuple[Gpu, ...] = ()
    pairs: tuple[GpuPair, ...] = ()
    nvml_problem: str = ""
    """Why there is no word of GPUs; empty where NVML answered."""
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver runs."""
    rdma: tuple[RdmaPort, ...] = ()
    cpus: int = Field(1, ge=1)
    memory_available_bytes: int = Field(0, ge=0)
    """RAM that a new process can have, the control group's limit respected."""
    cache: Space | None = None
    """Where weights and compiled kernels are kept."""
    compile_cache: bool = False
    """Whether vLLM has compiled something here before."""
    shm: Space | None = None
    open_files: tuple[int, int] | None = None
    """Soft and hard limit; -1 is none."""
    locked_memory_bytes: tuple[int, int] | None = None
    python: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    """Packages that are installed."""
    busy_ports: dict[int, str] = Field(default_factory=dict)
    """Of those asked for: what the system says of each that cannot be had."""
    programs: dict[str, str | None] = Field(default_factory=dict)
    """Where each optional program is; None where it is not."""
    clock_synchronised: bool | None = None
    read_rate: ReadRate | None = None
    """Of the weights that are to be served."""
