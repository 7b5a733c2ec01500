"""The activation as a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from . import _C
from ._checks import check_int
from ._dtypes import PRECISE, precise_dtype, widest_dtype
from .compiler import is_exporting
from .compiler import prepare as _prepare_compiler

_lambda_gelu = torch.ops.lambda_gelu.lambda_gelu.default  # looked up once: the lookup costs as much as a small call
_is_compiling = torch.compiler.is_compiling

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Beyond it F.softplus returns its argument; log1p(exp(-40)) is below half an ULP of 40 in float64.
_SOFTPLUS_THRESHOLD = 40


class LambdaGELU(nn.Module):
    r"""GELU with a learnable hardness, :math:`f(x; \lambda) = x \Phi(\lambda x)` (arXiv 2603.21991).

    :math:`\lambda = 1` is GELU, :math:`\lambda \to \infty` is ReLU. λ is learned through :math:`\lambda = 1 +
    \mathrm{softplus}(s / \tau)`, where s is :attr:`raw_hardness` and τ a fixed temperature. Give s its own learning
    rate and no weight decay with :func:`lambda_gelu.param_groups`.

    While *frozen* (:meth:`freeze_hardness`) the forward uses the buffer ``hardness_override``, which no optimizer,
    momentum, weight decay or learning-rate schedule can move. ``raw_hardness`` stays in the graph with a gradient that
    is exactly zero, so that DistributedDataParallel counts it as used.

    The state dict holds s, the override and τ (as ``_extra_state``, a float64 tensor), always together. A checkpoint
    with another τ makes the module adopt that τ; one with another number of λ is refused and changes nothing here.
    A copy into ``hardness_override`` in place, as ``torch.optim.swa_utils.AveragedModel`` makes, freezes or unfreezes
    as well. Leave its ``use_buffers`` at False: an average of buffers with NaN (learned) would be NaN.

    s needs more than 16 bits: the neighbours of a bfloat16 are 0.4 to 0.8 % apart, so that small steps of an optimizer
    round to nothing and λ stands still. A model that is cast to bfloat16 or float16 (``model.bfloat16()``,
    ``model.to(torch.float16)``) therefore keeps s and the override in float32 or float64, and λ is learned as before.
    Beside bfloat16 weights, FSDP2 up to PyTorch 2.13 asks for a group of its own (``fully_shard(site)`` before its
    parent); float32 parameters with a ``MixedPrecisionPolicy`` need nothing. A 16-bit `dtype` that is asked for here
    is obeyed, for engines that flatten parameters of one dtype and keep float32 copies of them.

    Args:
        num_parameters: number of λ: 1, or the number of channels.
        init_hardness: λ at the start, finite and above 1; a float or a tensor of ``num_parameters`` values.
            Default None: s = 0, that is λ = 1 + ln 2 ≈ 1.693 for any τ (our choice, the paper does not give its own).
        temperature: τ, finite and positive. Default 0.1 (ours).
        channel_dim: dimension of the input that has one λ per index, where ``num_parameters`` > 1. Default 1, as PReLU.
        device, dtype: of ``raw_hardness``: float32, float64, bfloat16 or float16. Default: torch's default dtype, or
            float32 where that has 16 bits.

    Shape:
        - Input: any; with ``num_parameters`` > 1, ``input.size(channel_dim) == num_parameters``.
        - Output: as the input, in the input's dtype.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Example::

        >>> activation = lambda_gelu.LambdaGELU()
        >>> activation(torch.randn(2, 8)).shape
        torch.Size([2, 8])
        >>> activation.hardness
        tensor([1.6931], grad_fn=<ToCopyBackward0>)
    """

    raw_hardness: nn.Parameter
    hardness_override: Tensor  # NaN: not overridden
    _observers: tuple[Any, ...] = ()  # of lambda_gelu.observe; here for modules that were pickled without

    def __init__(
        self,
        num_parameters: int = 1,
        *,
        init_hardness: float | Tensor | None = None,
        temperature: float = 0.1,
        channel_dim: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dtype is None:
            dtype = precise_dtype(torch.get_default_dtype())
        if dtype not in _DTYPES:
            raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        check_int("num_parameters", num_parameters, 1)
        check_int("channel_dim", channel_dim)
        self.num_parameters = num_parameters
        self.channel_dim = channel_dim
        self._temperature = _checked_temperature(temperature)
        self._init_hardness = None if init_hardness is None else self._checked(init_hardness).clone()
        self._frozen = False
        # The hardness_override, and its version, from which _frozen was taken.
        self._seen: tuple[Tensor | None, int | None] = (None, None)
        self._substituted = 0  # nesting depth of relu_substituted()
        self._observers = ()
        self.raw_hardness = nn.Parameter(torch.empty(self.num_parameters, device=device, dtype=dtype))
        override = torch.empty(self.num_parameters, device=device, dtype=precise_dtype(dtype))
        self.register_buffer("hardness_override", override)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts λ back to ``init_hardness``, learned."""
        raw = None if self._init_hardness is None else self._raw_from_hardness(self._init_hardness)
        self._write_raw(torch.zeros(self.num_parameters, device="cpu") if raw is None else raw)
        self._clear_override()

    def forward(self, input: Tensor) -> Tensor:
        """The activation, elementwise; ReLU within :func:`lambda_gelu.relu_substituted`."""
        if self._observers:
            for observer in self._observers:
                observer.add(input)
        if self._substituted:
            return nn.functional.relu(input)
        raw = self._parameters.get("raw_hardness")  # as an attribute it costs ten times as much
        if raw is None:  # parametrized, or replicated by DataParallel
            raw = self.raw_hardness
        if _is_compiling():
            _prepare_compiler()
            frozen = self._frozen if is_exporting() and self._flag_is_known() else None
        else:
            frozen = self._is_frozen_now()
        if frozen is None:
            return _lambda_gelu(input, self._hardness_by_value(raw), self.channel_dim)
        if frozen:
            override = self.hardness_override
            if type(raw) is not nn.Parameter:
                override = _beside(raw, _local(override))
            # Every override is positive: this is the override, with a zero gradient for raw_hardness.
            return _lambda_gelu(input, torch.where(override > 0, override, raw), self.channel_dim)
        return _lambda_gelu(input, raw, self.channel_dim, self._temperature)

    def _hardness_by_value(self, raw: Tensor) -> Tensor:
        """λ without a branch: what asks for the flag is compiled again when λ is frozen, and vmap has one for each."""
        override = _beside(raw, _local(self.hardness_override))
        frozen = override > 0
        # A NaN in s is kept out of softplus too: its derivative would make NaN of the zero gradient.
        return torch.where(frozen, override, self._hardness_from_raw(torch.where(frozen, override, raw)))

    @property
    def temperature(self) -> float:
        """τ. Read-only: with another τ the same s means another λ."""
        return self._temperature

    @property
    def hardness(self) -> Tensor:
        """λ as the forward uses it, shape ``(num_parameters,)``: float32, or float64 where ``raw_hardness`` is float64.

        Differentiable with respect to ``raw_hardness`` while learned; a detached copy while frozen, or, in
        compiled code and under vmap, one with a gradient of zero.
        """
        frozen = None if _is_compiling() else self._is_frozen_now()
        if frozen is None:
            return self._hardness_by_value(self._whole_raw())
        return _local(self.hardness_override).detach().clone() if frozen else self._learned_hardness()

    def set_hardness(self, value: float | Tensor) -> None:
        """Sets λ: s while learned (rounded to its dtype), the override while frozen.

        Args:
            value: a float, or a tensor of 1 or ``num_parameters`` values; finite and positive; above 1 while learned.

        Raises:
            ValueError: otherwise; nothing is changed.
            RuntimeError: inside a forward that is being exported.
        """
        _refuse_export("set_hardness")
        if self.is_frozen:
            self._write_override(self._checked_override(value), frozen=True)
        else:
            self._write_raw(self._raw_from_hardness(self._checked(value)))

    def _check_learnable(self, value: float | Tensor) -> None:
        """Raises what set_hardness would raise on a learned module."""
        self._raw_from_hardness(self._checked(value))

    @property
    def is_frozen(self) -> bool:
        """Whether the forward uses ``hardness_override``."""
        frozen = None if _is_compiling() else self._is_frozen_now()
        return self._frozen if frozen is None else frozen

    def freeze_hardness(self) -> None:
        """From now on the forward uses the present λ, whatever happens to ``raw_hardness``.

        Raises:
            ValueError: where the λ that was learned is not finite; nothing is changed.
        """
        _refuse_export("freeze_hardness")
        if not self.is_frozen:
            hardness = self.hardness.detach()
            if not hardness.is_meta:
                _refuse_unless(hardness.isfinite(), hardness, "a hardness must be finite to be frozen")
            self._write_override(hardness, frozen=True)

    def unfreeze_hardness(self) -> None:
        """Writes the override back into s, which is learned from now on.

        The optimizer's momentum for s, if any, is left as it is.

        Raises:
            ValueError: where an override is not above 1, which no s can express; nothing is changed.
        """
        _refuse_export("unfreeze_hardness")
        if not self.is_frozen:
            return
        # A λ that freezing took from s and nobody has changed since gives s back to the last bit.
        raw = self._whole_raw().detach().clone()
        override = _local(self.hardness_override)
        changed = self._learned_hardness().detach() != override
        raw[changed] = self._raw_from_hardness(override[changed].to("cpu", torch.float64)).to(raw)
        self._write_raw(raw)
        self._clear_override()

    def extra_repr(self) -> str:
        """What ``print(module)`` shows: λ, τ and whether λ is frozen."""
        parts = [f"num_parameters={self.num_parameters}"]
        sharded = hasattr(self.raw_hardness, "full_tensor")  # printing on one rank must not wait for the others
        if not self.raw_hardness.is_meta and (self.is_frozen or not sharded):
            values = self.hardness.tolist()
            low, high = min(values), max(values)
            parts.append(f"hardness={low:.4g}" if low == high else f"hardness={low:.4g}..{high:.4g}")
        parts.append(f"temperature={self._temperature:g}")
        if self.num_parameters > 1:
            parts.append(f"channel_dim={self.channel_dim}")
        if self.is_frozen:
            parts.append("frozen")
        return ", ".join(parts)

    # --- state -------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """τ for the state dict, as a tensor: safetensors holds nothing else."""
        return torch.tensor(self._temperature, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Adopts the τ of a state dict."""
        self._temperature = _checked_temperature(float(state))

    def _load_from_state_dict(  # noqa: PLR0917 - torch's signature
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        parameters = [prefix + "raw_hardness", prefix + "hardness_override"]
        if prefix + "_extra_state" in state_dict and not any(key in state_dict for key in parameters):
            # safetensors writes a shared tensor under one name: at its other places a shared site has only τ. Nothing
            # is loaded here, not even that.
            missing_keys += parameters
            return
        problem = self._state_problem(state_dict, prefix)
        if problem is not None:
            error_msgs.append(problem)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "hardness_override" in state_dict:
            self._note_override()

    def _state_problem(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """Why this state cannot be loaded, or None."""
        keys = [prefix + name for name in ("raw_hardness", "hardness_override", "_extra_state")]
        missing = [key for key in keys if key not in state_dict]
        if len(missing) == len(keys):
            return None  # strict loading reports missing keys
        if missing:
            return f"{', '.join(missing)} missing: λ follows from raw_hardness, hardness_override and τ together"
        raw, override, temperature = (state_dict[key] for key in keys)
        expected = tuple(self.raw_hardness.shape)
        problem = None
        if tuple(raw.shape) != expected or tuple(override.shape) != expected:
            got = f"{tuple(raw.shape)} and {tuple(override.shape)}"
            problem = f"size mismatch for {keys[0]} and {keys[1]}: expected shape {expected}, got {got}"
        elif override.dtype not in PRECISE:
            problem = f"{keys[1]} must be float32 or float64 as it was saved, got {override.dtype}: a rounded λ"
        elif not isinstance(temperature, Tensor) or temperature.is_meta or temperature.numel() != 1:
            problem = f"{keys[2]} must be a tensor that holds τ, got {_described(temperature)}"
        elif temperature.dtype != torch.float64:
            problem = f"{keys[2]} must be float64 as it was saved, got {temperature.dtype}: a rounded τ means another λ"
        elif not (math.isfinite(temperature.item()) and temperature.item() > 0):
            problem = f"{keys[2]}: temperature must be finite and positive, got {temperature.item()}"
        elif not override.is_meta and not _is_override(override):
            problem = f"{keys[1]} must be NaN (learned) or finite and positive (frozen), got {override.tolist()}"
        return problem

    def __getstate__(self) -> dict[str, Any]:
        # A copy or pickle made inside relu_substituted() or observe() would otherwise stay so for ever, and the copy of
        # the override counts its versions anew.
        return {**self.__dict__, "_substituted": 0, "_observers": (), "_seen": (None, None)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LambdaGELU:
        frozen = self.is_frozen

        def without_rounding(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            rounded = tensor.dtype in PRECISE and applied.dtype not in PRECISE
            return tensor.to(applied.device) if rounded else applied

        super()._apply(without_rounding, recurse)
        self._set_frozen(frozen)  # to_empty() leaves values there that mean nothing
        return self

    def __prepare_scriptable__(self) -> None:
        # torch.jit.script asks for a stand-in, and would leave it in the user's model too.
        raise NotImplementedError(
            "torch.jit.script cannot compile LambdaGELU: trace the module or the model (torch.jit.trace), after which "
            "it may be part of a scripted one, or use torch.export"
        )

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _learned_hardness(self) -> Tensor:
        raw = self._whole_raw()
        hardness = self._hardness_from_raw(raw)
        return self._with_exact_value(hardness, raw.detach()) if raw.dtype == torch.float64 else hardness

    def _hardness_from_raw(self, raw: Tensor) -> Tensor:
        double = widest_dtype(raw.device)
        hardness = nn.functional.softplus(raw.to(double) / self._temperature, threshold=_SOFTPLUS_THRESHOLD) + 1
        return hardness if raw.dtype == torch.float64 else hardness.to(torch.float32)

    def _whole_raw(self) -> Tensor:
        """s of all channels; where ranks hold a part each (DTensor), every rank must ask."""
        self._refuse_missing_elements()
        raw: Any = self.raw_hardness
        return raw.full_tensor() if hasattr(raw, "full_tensor") else raw

    def _refuse_missing_elements(self) -> None:
        """FSDP1 takes elements away, or the parameter and its memory; a DTensor has them all, wherever they lie."""
        flattened = "raw_hardness" not in self._parameters and getattr(self, "_is_fsdp_managed_module", False)
        if flattened or self.raw_hardness.numel() != self.num_parameters:
            raise ValueError(
                "raw_hardness is part of a flattened parameter here, as FullyShardedDataParallel (FSDP1) leaves it "
                "outside of forward: do this on every rank inside FullyShardedDataParallel.summon_full_params(model), "
                "or use fully_shard (FSDP2) instead"
            )

    def _with_exact_value(self, hardness: Tensor, raw: Tensor) -> Tensor:
        """The kernels' λ to the last bit of float64, where torch's softplus may be an ULP off; same gradient."""
        if type(raw) is not Tensor or raw.device.type != "cpu" or torch.compiler.is_compiling():
            return hardness
        try:
            if not bool(raw.isfinite().all()):
                return hardness
        except RuntimeError:  # a transform lets nobody read values
            return hardness
        exact = torch.tensor([_C.hardness_from_raw(s, self._temperature) for s in raw.tolist()], dtype=torch.float64)
        return hardness + (exact - hardness.detach())  # neighbours differ exactly, so the sum is `exact`

    @torch.no_grad()
    def _write_raw(self, values: Tensor) -> None:
        self._refuse_missing_elements()
        raw: Any = self.raw_hardness
        managed = getattr(self, "_fsdp_use_orig_params", False) and not getattr(raw, "_fsdp_flattened", False)
        if managed and not hasattr(raw, "full_tensor"):
            raise ValueError(
                "raw_hardness is gathered here, as fully_shard leaves it after a forward without backward, and what is "
                "written to it would be lost: call reshard() of the model first"
            )
        values = _beside(raw, values.to(raw.device, raw.dtype))
        if hasattr(raw, "full_tensor"):
            values = values.redistribute(placements=raw.placements)  # each rank keeps its part: no communication
        raw.copy_(values)

    def _clear_override(self) -> None:
        self._write_override(torch.tensor(math.nan, device="cpu"), frozen=False)

    def _write_override(self, values: Tensor, *, frozen: bool) -> None:
        _local(self.hardness_override).copy_(values)
        self._set_frozen(frozen)

    def _set_frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        override = self.hardness_override
        self._seen = (override, None if override.is_inference() else override._version)

    def _is_frozen_now(self) -> bool | None:
        """The flag, taken anew from the override where that was replaced (``functional_call``) or written to in place.

        Compares identity and a counter, since reading the values would wait for a device. None: there are values, but
        a transform lets nobody read them.
        """
        override = self._buffers["hardness_override"]
        seen, version = self._seen
        try:
            known = override is seen and override._version == version
        except RuntimeError:  # made in inference mode: it has no counter
            known = True
        return self._frozen if known else self._note_override()

    def _flag_is_known(self) -> bool:
        """Whether the override is as it was when the flag was taken: while it is exported it has no values to read."""
        seen, version = self._seen
        if seen is None:
            return False
        return seen.is_inference() or seen._version == version

    _flag_is_known._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as compiler.prepare

    def _note_override(self) -> bool | None:
        """Takes the flag from the values of the override. None: they cannot be read, and the flag stays as it was."""
        override = _local(self.hardness_override)
        frozen = self._frozen
        if not override.is_meta:
            if type(override) is not Tensor or is_functorch_wrapped_tensor(override):
                return None
            try:
                frozen = bool((override > 0).all())
            except RuntimeError:  # torch.func.linearize and other tracers
                return None
        self._set_frozen(frozen)
        return frozen

    def _checked(self, value: float | Tensor) -> Tensor:
        """λ as float64 on the CPU, shape (num_parameters,)."""
        if isinstance(value, Tensor):
            hardness = value.detach().to("cpu", torch.float64).flatten()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            hardness = torch.tensor([value], dtype=torch.float64, device="cpu")
        else:
            raise TypeError(f"hardness must be a float or a tensor, got {type(value).__name__}")
        if hardness.numel() not in (1, self.num_parameters):
            raise ValueError(f"hardness must have 1 or {self.num_parameters} elements, got {hardness.numel()}")
        _refuse_unless(hardness.isfinite() & (hardness > 0), hardness, "hardness must be finite and positive")
        return hardness.expand(self.num_parameters)

    def _checked_override(self, value: float | Tensor) -> Tensor:
        """λ in the dtype of the override on the CPU, shape (num_parameters,)."""
        hardness = self._checked(value)
        override = hardness.to(self.hardness_override.dtype)
        valid = override.isfinite() & (override > 0)
        _refuse_unless(valid, hardness, f"hardness must be finite and positive in {override.dtype}")
        return override

    def _raw_from_hardness(self, hardness: Tensor) -> Tensor:
        """s for float64 λ on the CPU."""
        _refuse_unless(
            hardness > 1,
            hardness,
            "a learned hardness must be above 1, since λ = 1 + softplus(s / τ); a frozen one (freeze_hardness) may be "
            "any positive number",
        )
        values = [_C.raw_from_hardness(h, self._temperature) for h in hardness.tolist()]
        raw = torch.tensor(values, dtype=torch.float64, device="cpu")
        dtype = self.raw_hardness.dtype
        _refuse_unless(raw.to(dtype).isfinite(), hardness, f"hardness is out of the range of {dtype}")
        return raw


def _local(override: Any) -> Any:
    """The override as every rank has it in full, where torch.distributed.tensor.distribute_module made it a DTensor."""
    return override.to_local() if hasattr(override, "to_local") else override


def _beside(raw: Tensor, values: Any) -> Any:
    """Values that every rank has in full, as an operand beside an s that may be a DTensor."""
    if not hasattr(raw, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 - costs half a second

    mesh: Any = raw.device_mesh
    return DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _refuse_export(method: str) -> None:
    """Raises while torch.export traces a forward: values of λ would become constants of the program."""
    if is_exporting():
        raise RuntimeError(f"{method} checks the values of λ and cannot be exported: call it before, on the module")


def _refuse_unless(valid: Tensor, values: Tensor, message: str) -> None:
    if not bool(valid.all()):
        raise ValueError(f"{message}; got {values[~valid][0].item()}")


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else type(value).__name__


def _is_override(values: Tensor) -> bool:
    return bool(values.isnan().all() or (values.isfinite() & (values > 0)).all())


def _checked_temperature(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"temperature must be a float, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be finite and positive, got {value}")
    return float(value)
