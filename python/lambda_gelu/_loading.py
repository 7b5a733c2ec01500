"""Models, data and functions that a command line names."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import convert_
from .sites import find_sites

_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# Where training scripts keep the state dict of the model among other things.
_WEIGHTS = ("state_dict", "model_state_dict", "model")


class UserError(Exception):
    """What was asked for cannot be done; the message says why in one line."""


def load_function(spec: str, argument: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; `argument` says in errors which one it is."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UserError(f"{argument} must be module:function, got {spec!r}")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{argument}: no module named {error.name!r} here or on the Python path") from error
        raise UserError(f"{argument}: importing {module_name} failed: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # a script that is no module may end the program
        raise UserError(f"{argument}: importing {module_name} failed: {one_line(error)}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise UserError(f"{argument}: {module_name} has no {name!r}")
        value = getattr(value, part)
    if not callable(value):
        raise UserError(f"{argument}: {spec} is no function, but {type(value).__name__}")
    function: Callable[..., Any] = value
    return function


def call(function: Callable[..., Any], spec: str, *args: Any) -> Any:
    """Calls what the user wrote; its exceptions become a :class:`UserError`."""
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec} raised {one_line(error)}") from error


def load_model(
    source: str,
    *,
    builder: str | None = None,
    checkpoint: str | None = None,
    convert: bool = False,
    trust: bool = False,
) -> nn.Module:
    """The model in eval mode, with its sites.

    Args:
        source: ``module:function`` that makes the model, or the file of a checkpoint.
        builder: ``module:function`` that makes the model of a file with a state dict.
        checkpoint: file with a state dict for a model that a function made.
        convert: replace GELU by λ-GELU at λ = 1, frozen: the same function.
        trust: load files that hold Python objects, which can run any code.
    """
    weights: Mapping[str, Any] | None = None
    if _is_file(source):
        if checkpoint is not None:
            raise UserError(f"MODEL is the file {source} already: --checkpoint goes with a module:function")
        loaded = _load_file(source, trust)
        if isinstance(loaded, nn.Module):
            if builder is not None:
                raise UserError(f"{source} holds a whole model: --model is for files with a state dict")
            model = loaded
        else:
            if builder is None:
                raise UserError(f"{source} holds a state dict: --model module:function must say what makes its model")
            model, weights = _built(builder, "--model"), _weights(loaded, source)
    else:
        if builder is not None:
            raise UserError(f"--model goes with a file, and MODEL {source!r} is none")
        model = _built(source, "MODEL")
        if checkpoint is not None:
            weights = _weights(_load_file(checkpoint, trust), checkpoint)
    of_lambda_gelu = weights is not None and any(key.endswith("raw_hardness") for key in weights)
    if weights is not None and not (convert and of_lambda_gelu):
        _load_weights(model, weights)
    if convert:
        _convert(model)
        if weights is not None and of_lambda_gelu:
            _load_weights(model, weights)
    return model.eval()


def inputs_of(batch: Any) -> Any:
    """What the model is called with: the first item of a tuple or list, else the batch itself."""
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise UserError(
            "a batch must be a tensor, (inputs, targets) or a dict of keyword inputs, got an empty sequence"
        )
    return batch[0]


def moved(value: Any, device: str) -> Any:
    """The same batch with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [moved(item, device) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


class Batches:
    """The batches of ``module:function``, which is called anew for every pass.

    Args:
        spec: of the function; it takes no argument and returns something to iterate over.
        argument: which one it is, for errors.
        limit: number of batches to take; None: all.
        device: where their tensors go.

    Attributes:
        total: number of batches of the pass that was begun last, where it is known beforehand.
    """

    def __init__(self, spec: str, argument: str, limit: int | None = None, device: str = "cpu") -> None:
        self.spec, self.argument, self.limit, self.device = spec, argument, limit, device
        self.total: int | None = limit
        self._function = load_function(spec, argument)

    def __iter__(self) -> Iterator[Any]:
        data = call(self._function, self.spec)
        try:
            batches = iter(data)
        except TypeError as error:
            raise UserError(f"{self.argument}: {self.spec} must return batches, got {type(data).__name__}") from error
        if isinstance(data, Sized):
            self.total = len(data) if self.limit is None else min(len(data), self.limit)
        count = 0
        while self.limit is None or count < self.limit:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except Exception as error:
                raise UserError(f"{self.argument}: {self.spec} raised {one_line(error)}") from error
            yield batch if self.device == "cpu" else moved(batch, self.device)
            count += 1
        if not count:
            raise UserError(f"{self.argument}: {self.spec} gave no batch")

    def first(self) -> Any:
        """What the model is called with, of the first batch."""
        return inputs_of(next(iter(self)))


def one_line(error: BaseException) -> str:
    """Type and message of an exception, without line breaks, of a length to read."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= 400 else f"{text[:399]}…"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


# --- files -----------------------------------------------------------------------------------------------------------


def _is_file(source: str) -> bool:
    path = Path(source)
    if path.is_file():
        return True
    if path.suffix in _FILES or (os.sep in source and ":" not in source):
        raise UserError(f"no such file: {source}")
    return False


def _load_file(source: str, trust: bool) -> Any:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"no such file: {source}")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file  # noqa: PLC0415 - another package
        except ModuleNotFoundError as error:
            raise UserError(f"{source} needs safetensors: pip install safetensors") from error
        return load_file(source)
    try:
        return torch.load(source, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise UserError(f"{source} cannot be read: {one_line(error)}") from error
        raise UserError(
            f"{source} holds Python objects or is no file of torch.save: --trust loads it, which can run any code that "
            "is in it"
        ) from error
    except Exception as error:
        raise UserError(f"{source} cannot be read: {one_line(error)}") from error


def _weights(loaded: Any, source: str) -> Mapping[str, Any]:
    for key in _WEIGHTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        keys = f" with {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise UserError(f"{source} holds no state dict, but {type(loaded).__name__}{keys}")
    return loaded


def _built(spec: str, argument: str) -> nn.Module:
    model = call(load_function(spec, argument), spec)
    if not isinstance(model, nn.Module):
        raise UserError(f"{argument}: {spec} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the state dict does not fit the model: {one_line(error)}") from error


def _convert(model: nn.Module) -> None:
    try:
        report = convert_(model)
    except ValueError as error:
        raise UserError(f"--convert: {' '.join(str(error).split())}") from error
    sites = find_sites(model)
    for converted in report.sites:
        sites[converted.name].freeze_hardness()
        sites[converted.name].set_hardness(1.0)
