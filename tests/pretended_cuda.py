"""A CUDA device that is pretended: tensors say ``cuda:0`` and hold their values on the CPU.

Every operation of PyTorch passes :func:`_run`, which computes on the CPU and refuses what CUDA would refuse: tensors on
both devices, a generator of the wrong one, ``numpy()``, and, with deterministic algorithms, an operation that has no
deterministic form. It counts operations (about kernel launches), casts and waits of the host. It is blind to memory,
streams, NCCL, speed, and to kernels that are missing or differ on CUDA.

:func:`activate` lasts for the process; call it before anything of ``ebjdat`` is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.utils import clip_grad
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TWO_DEVICES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
LISTS = {"cat", "stack", "convolution", "addmm", "mm", "gather", "native_batch_norm", "nll_loss_forward"}
"""Even a CPU tensor without dimensions is refused here; operations by element take it."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero"}
UNREPEATABLE = {
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "bincount", "grid_sampler_2d_backward", "histc",
    "max_unpool2d", "median", "nll_loss2d_forward", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "scatter_reduce", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
}  # fmt: skip
"""What torch.use_deterministic_algorithms refuses on CUDA, as its documentation lists it for torch 2.15."""
_leaving = False
_says: dict[int, torch.device] = {}
"""Devices of generators; PyTorch hands out other Python objects of the same generator."""
_backwards: set[int] = set()
"""Backward passes that met the device."""
counted: Counter[str] | None = None


class Pretended(torch.Tensor):
    """A tensor that says ``cuda:0``; to the C++ side, which would look for streams, ``inner`` and it are on the CPU."""

    inner: torch.Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=inner.device, **layout)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        other = next((one for one in args if isinstance(one, torch.Tensor)), None)
        copy = kwargs.pop("copy", False)
        if other is None:
            device, dtype, _, form = torch._C._nn._parse_to(*args[:2], **kwargs)
        else:
            device, dtype, form = other.device, other.dtype, None
        away = device is not None and device.type == "cpu"
        same = dtype in (None, self.dtype) and not copy and not away
        if same and (form is None or self.is_contiguous(memory_format=form)):
            return self
        wanted = {"dtype": dtype or self.dtype, "memory_format": form or torch.preserve_format}
        with _to_cpu() if away else nullcontext():
            return torch.ops.aten._to_copy(self, device=CPU if away else CUDA, **wanted)

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.to("cpu")

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        _count("wait")
        return self.inner.tolist()


@contextmanager
def _to_cpu() -> Iterator[None]:
    """Inside, a copy to the CPU is meant; autograd's own casts name the CPU, too."""
    global _leaving
    _leaving = True
    try:
        yield
    finally:
        _leaving = False


def _count(*names: str) -> None:
    if counted is not None:
        counted.update(names)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    leaves, form = tree_flatten((args, kwargs))
    name, task = function._schema.name.split("::")[1], torch._C._current_graph_task_id()
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    generator = next((_says.get(leaf._cdata, CPU) for leaf in leaves if isinstance(leaf, _Generator)), None)
    asked = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
    if not here and not asked:
        if generator == CUDA:
            raise RuntimeError(f"{function}: a generator on cuda draws for the cpu")
        made = function(*args, **kwargs)
        # A gradient of zeros that autograd makes for the device.
        return Pretended(made) if not tensors and task in _backwards and isinstance(made, torch.Tensor) else made
    if task != -1:
        _backwards.add(task)
    _refuse(function, name, args, tensors, here)
    to_cpu = not isinstance(args[0], Pretended) if name == "copy_" else _leaving and bool(here)
    if generator not in (None, CUDA) and not to_cpu:
        raise RuntimeError(f"{function}: expected a generator on cuda")
    _note(function, name, args, to_cpu)
    plain = [_plain(leaf) for leaf in leaves]
    inner_args, inner_kwargs = tree_unflatten(plain, form)
    inner_kwargs.pop("pin_memory", None)
    found = function(*inner_args, **inner_kwargs)
    if name == "_to_copy" and found.data_ptr() == inner_args[0].data_ptr():
        found = found.clone()
    known = {id(_plain(tensor)): tensor for tensor in tensors}

    def out(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known.get(id(value), value if to_cpu else Pretended(value))

    return tree_map(out, found)


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return CPU
    return leaf.inner if isinstance(leaf, Pretended) else leaf


def _refuse(function: Any, name: str, args: Any, tensors: list[Any], here: list[Any]) -> None:
    away = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    if name in UNREPEATABLE and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(f"{function} has no deterministic form on CUDA")
    if not away or not here or name in TWO_DEVICES:
        return
    if name in INDEXING and isinstance(args[0], Pretended):  # an index may be on the CPU, values may not
        away = [value for value in args[2:3] if not isinstance(value, Pretended)]
    if any(tensor.dim() or name in LISTS for tensor in away):
        raise RuntimeError(f"{function}: tensors on cuda:0 and on the cpu")


def _note(function: Any, name: str, args: Any, to_cpu: bool) -> None:
    indices = tree_flatten(args[1])[0] if name in INDEXING else []
    masked = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
    if name in WAITS or masked or (to_cpu and name in TWO_DEVICES):
        _count("wait")
    view = any(out.alias_info is not None and not out.alias_info.is_write for out in function._schema.returns)
    if not view and not to_cpu and name not in ("detach", "lift_fresh", "_local_scalar_dense"):
        _count("operation", name)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


_Generator, _Autocast = torch.Generator, torch.autocast
_to, _tensor, _as_tensor, _group = (
    torch.Tensor.to, torch.tensor, torch.as_tensor, _foreach_utils._group_tensors_by_device_and_dtype
)  # fmt: skip


class Generator(_Generator):
    """A generator that says where it is; the state of one on CUDA has another length, as it has in truth."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _Generator.__new__(cls, "cpu")
        made.says = _says[made._cdata] = CUDA if torch.device(device).type == "cuda" else CPU
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    device = property(lambda self: self.says)  # type: ignore[assignment]

    def get_state(self) -> torch.Tensor:
        state = super().get_state()
        return state if self.says != CUDA else torch.cat([state, state.new_zeros(16)])

    def set_state(self, state: torch.Tensor) -> Any:
        if isinstance(state, Pretended) or len(state) != len(self.get_state()):
            raise RuntimeError("RNG state is wrong size or on the device")
        return super().set_state(state[: len(super().get_state())].clone())


def _numbered(value: Any) -> Any:
    """Without a number C++ would ask the driver for the current device."""
    return CUDA if isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda" else value


def _any_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args and isinstance(args[0], Pretended):
        args = (CUDA, args[0].dtype)
    return _to(self, *map(_numbered, args), **{name: _numbered(value) for name, value in kwargs.items()})


def _made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """``torch.tensor`` would fill memory of the device in C++."""
    made = _tensor(data.inner if isinstance(data, Pretended) else data, *args, **kwargs)
    return made if device is None and not isinstance(data, Pretended) else made.to(device or CUDA)


def _as_made(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
    made = data if isinstance(data, torch.Tensor) else _as_tensor(data)
    return made.to(made.device if device is None else device, dtype or made.dtype)


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    here = any(isinstance(tensor, Pretended) for one in lists for tensor in one)
    return {(CUDA if here else place, kind): v for (place, kind), v in _group(lists, with_indices).items()}


def activate() -> None:
    """From now on PyTorch of this process has one CUDA device."""
    state = {"now": torch.zeros(16, dtype=torch.uint8)}
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "max_memory_allocated": 0,
        "get_device_capability": (9, 0), "get_device_name": "pretended", "is_bf16_supported": True, "init": None,
        "_lazy_init": None, "set_device": None, "synchronize": None, "empty_cache": None, "manual_seed": None,
        "manual_seed_all": None, "reset_peak_memory_stats": None,
    }  # fmt: skip
    for module in (torch.cuda, torch.cuda.random):
        for name, answer in answers.items():
            setattr(module, name, lambda *args, answer=answer, **kwargs: answer)
        module.get_rng_state = lambda device=None: state["now"].clone()  # type: ignore[attr-defined]
        module.set_rng_state = lambda new, device=None: state.update(now=new)  # type: ignore[attr-defined]
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        setattr(torch.optim.Optimizer, name, lambda self: None)
    for module in (clip_grad, _foreach_utils):
        module._group_tensors_by_device_and_dtype = _grouped  # type: ignore[attr-defined]
        module._has_foreach_support = lambda tensors, device: True  # type: ignore[attr-defined]
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data =` would lose the Python object
    torch.Generator, torch.tensor, torch.as_tensor = Generator, _made, _as_made  # type: ignore[misc,assignment]
    torch.Tensor.to = _any_to  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = lambda self, *args, **kwargs: _any_to(self, CUDA)  # type: ignore[method-assign,assignment]
    torch.autocast = lambda kind, *args, **kwargs: _Autocast("cpu", *args, **kwargs)  # type: ignore[misc,assignment]
    _Mode().__enter__()


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts of what happens inside: ``operation``, ``wait``, and each operation by its name."""
    global counted
    counted = Counter()
    try:
        yield counted
    finally:
        counted = None
