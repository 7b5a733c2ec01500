"""The command line: ``lambda-gelu inspect`` and ``lambda-gelu substitute``."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from ._calls import called
from ._checks import check_positive
from ._loading import Batches, UserError, call, inputs_of, load_function, load_model, one_line
from .inspection import inspect_sites
from .report import LITTLE_LOSS_DB
from .site_costs import SiteWeight, site_weights
from .sites import find_sites
from .statistics import Statistics, observe
from .substitution import to_relu_

_MODEL = """\
MODEL is module:function (called without arguments; it returns a torch.nn.Module) or a file: one with a state dict, for
which --model names the module:function that makes the model, or one of torch.save(model), which needs --trust. The
function of --data is called without arguments for every pass, and returns batches: a tensor, (inputs, targets), or a
dict of keyword inputs. The current directory is on the Python path."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: as on the command line, without the program. Default: those of the process.

    Returns:
        int: 0, or 2 where something was wrong with what was given; one line on stderr says what.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    if getattr(sys.stdout, "errors", None) == "strict":  # a terminal that has no λ is no reason to lose the report
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            options.command(options)
        except KeyboardInterrupt:
            print("lambda-gelu: interrupted", file=sys.stderr)
            return 130
        except (Exception, SystemExit) as error:  # a user's code that ends the program is no success
            if options.traceback:
                raise
            expected = isinstance(error, (UserError, ValueError, ImportError))
            text = " ".join(str(error).split()) if expected else f"{one_line(error)} (--traceback shows where)"
            print(f"lambda-gelu: {text}", file=sys.stderr)
            return 2
    return 0


# --- commands --------------------------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> None:
    check_positive("--tolerance-db", options.tolerance_db)
    check_positive("--cap", options.cap)
    _check_outputs(options.json, options.csv, options.png)
    model, batches = _model_and_data(options)
    statistics = _observed(model, batches, options)
    report = inspect_sites(model, statistics, tolerance_db=options.tolerance_db, cap=options.cap, per=options.per)
    print(report)
    if options.json:
        report.to_json(options.json)
    if options.csv:
        report.to_csv(options.csv)
    if options.png:
        report.plot(options.png)


def _substitute(options: argparse.Namespace) -> None:
    _check_substitute(options)
    _check_outputs(options.output, options.report_json, options.report_csv, options.report_png)
    model, batches = _model_and_data(options)
    loss = None if options.loss is None else load_function(options.loss, "--loss")
    training = (
        Batches(options.data, "--data", None, options.device)
        if options.train_data is None
        else Batches(options.train_data, "--train-data", None, options.device)
    )
    evaluate = None if options.metric is None else _Metric(options.metric, options.quiet)
    weights = None if loss is None else _weights(model, next(iter(training)), loss, options.loss)
    with closing(evaluate) if evaluate is not None else nullcontext():
        report = to_relu_(
            model,
            correction=options.correction,
            evaluate=evaluate,
            higher_is_better=None if evaluate is None else options.higher_is_better,
            metric_name="metric" if evaluate is None else options.metric_name or options.metric.partition(":")[2],
            example_inputs=batches.first(),
            calibrate=lambda calibrated: _calibrate(calibrated, batches, options.quiet),
            max_loss=options.max_loss,
            add_bias=options.add_bias,
            weights=weights,
        )
    if loss is not None and options.recover_steps:
        _recover(model, training, loss, options)
        if evaluate is not None:
            with closing(evaluate):
                report = report.with_metrics(recovered=evaluate(model))
    _write(options.output, lambda path: torch.save(model.state_dict(), path))
    soft = [
        site.name
        for site in report.sites
        if site.substituted and site.ser_db is not None and site.ser_db < LITTLE_LOSS_DB
    ]
    if soft:
        warnings.warn(f"swapped below {LITTLE_LOSS_DB:g} dB, where it tends to cost: {', '.join(soft)}", stacklevel=1)
    print(report)
    if options.report_json:
        report.to_json(options.report_json)
    if options.report_csv:
        report.to_csv(options.report_csv)
    if options.report_png:
        report.plot(options.report_png)


def _model_and_data(options: argparse.Namespace) -> tuple[nn.Module, Batches]:
    model = load_model(
        options.model_source,
        builder=options.model,
        checkpoint=options.checkpoint,
        convert=options.convert,
        trust=options.trust,
    )
    try:
        find_sites(model)
    except ValueError as error:
        relus = sum(isinstance(module, nn.ReLU) for module in model.modules())
        advice = (
            f"it has {relus} nn.ReLU, as after a substitution" if relus else "--convert makes its GELU modules some"
        )
        raise UserError(f"{type(model).__name__} has no LambdaGELU module: {advice}") from error
    return model.to(options.device), Batches(options.data, "--data", options.batches, options.device)


def _observed(model: nn.Module, batches: Batches, options: argparse.Namespace) -> Statistics:
    with observe(model, per=options.per) as statistics:
        _calibrate(model, batches, options.quiet)
    return statistics


def _calibrate(model: nn.Module, batches: Batches, quiet: bool) -> None:
    with torch.no_grad():
        for batch in _shown(batches, "calibrating", quiet):
            try:
                called(model, inputs_of(batch))
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"the model failed on a batch of {batches.spec}: {one_line(error)}") from error


class _Metric:
    """The user's metric of a model, with a bar that counts how often it was asked."""

    def __init__(self, spec: str, quiet: bool) -> None:
        self._function = load_function(spec, "--metric")
        self._spec = spec
        self._quiet = quiet
        self._bar: Any = None

    def __call__(self, model: nn.Module) -> float:
        if self._bar is None:
            self._bar = _bar(None, "scoring", "evaluation", self._quiet)
        with torch.no_grad():
            score = call(self._function, self._spec, model.eval())
        if isinstance(score, Tensor) and score.numel() == 1:
            score = score.item()
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise UserError(f"--metric: {self._spec} must return a number, got {type(score).__name__}")
        if self._bar is not None:
            self._bar.update()
        return float(score)

    def close(self) -> None:
        """Ends the bar; a further call begins another."""
        _close(self._bar)
        self._bar = None


def _weights(model: nn.Module, batch: Any, loss: Callable[..., Any], spec: str) -> dict[str, SiteWeight]:
    """What each site does to the loss of a batch."""
    return site_weights(model, lambda asked: _loss(loss, spec, asked, batch))


def _recover(model: nn.Module, batches: Batches, loss: Callable[..., Any], options: argparse.Namespace) -> None:
    """Fine-tunes everything but λ of the substituted model, for some steps of Adam."""
    parameters = [parameter for name, parameter in model.named_parameters() if not name.endswith("raw_hardness")]
    optimizer = torch.optim.Adam(parameters, lr=options.lr)
    bar = _bar(options.recover_steps, "recovering", "step", options.quiet)
    model.train()
    done = 0
    try:
        while done < options.recover_steps:
            for batch in islice(batches, options.recover_steps - done):
                value = _loss(loss, options.loss, model, batch)
                if not math.isfinite(value.item()):
                    raise UserError(f"--loss: {options.loss} gave {value.item()} at step {done + 1} of the recovery")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                done += 1
                if bar is not None:
                    bar.set_postfix(loss=f"{value.item():.4g}", refresh=False)
                    bar.update()
    finally:
        _close(bar)
        model.eval()


def _loss(function: Callable[..., Any], spec: str, model: nn.Module, batch: Any) -> Tensor:
    value = call(function, spec, model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise UserError(f"--loss: {spec} must return a tensor of one element with a gradient")
    return value


# --- what is shown and written ---------------------------------------------------------------------------------------


def _bar(total: int | None, text: str, unit: str, quiet: bool) -> Any:
    """A bar of tqdm on stderr; None where nobody wants one or tqdm is missing."""
    if quiet:
        return None
    try:
        from tqdm import tqdm  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError:
        return None
    return tqdm(total=total, desc=text, unit=unit, file=sys.stderr, dynamic_ncols=True)


def _close(bar: Any) -> None:
    if bar is not None:
        bar.close()


def _shown(batches: Batches, text: str, quiet: bool) -> Iterator[Any]:
    bar = None
    try:
        for batch in batches:
            bar = _bar(batches.total, text, "batch", quiet) if bar is None else bar
            yield batch
            if bar is not None:
                bar.update()
    finally:
        _close(bar)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"lambda-gelu: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _write(path: str, write: Callable[[str], object]) -> None:
    """A file that is there in full or as it was before."""
    target = Path(path).resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".lambda-gelu-") as folder:
        written = Path(folder) / target.name
        write(str(written))
        os.replace(written, target)


# --- what is refused before anything is computed ---------------------------------------------------------------------


def _check_outputs(*paths: str | None) -> None:
    for path in paths:
        if path is None:
            continue
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder, not a file to write")
        if not Path(path).resolve().parent.is_dir():
            raise UserError(f"there is no folder {Path(path).parent} to write {Path(path).name} into")
        if path.endswith(".png"):
            from .figures import plot_inspection  # noqa: F401, PLC0415 - matplotlib may be missing


def _check_substitute(options: argparse.Namespace) -> None:
    for name, value in (
        ("--correction bias", options.correction == "bias"),
        ("--max-loss", options.max_loss is not None),
    ):
        if value and options.metric is None:
            raise UserError(f"{name} needs --metric: it keeps what the metric agrees with")
    if options.recover_steps and options.loss is None:
        raise UserError("--recover-steps needs --loss module:function, which takes the model and a batch")
    if options.recover_steps < 0:
        raise UserError(f"--recover-steps must not be negative, got {options.recover_steps}")
    if options.train_data is not None and options.loss is None:
        raise UserError("--train-data needs --loss module:function, which takes the model and a batch")
    check_positive("--lr", options.lr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lambda-gelu", description="From GELU and λ-GELU to ReLU.", epilog=_MODEL)
    parser.add_argument("--version", action="version", version=f"lambda-gelu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="inspect | substitute")

    inspect = commands.add_parser(
        "inspect",
        help="what a swap to ReLU would cost, site by site",
        description="Prints λ, σ, κ = λσ, SER and zeros of every site, and the λ that a tolerance asks for.",
        epilog=_MODEL,
    )
    _add_common(inspect)
    inspect.add_argument("--tolerance-db", type=float, default=30.0, metavar="DB", help="SER to reach (default 30)")
    inspect.add_argument("--cap", type=float, default=64.0, metavar="λ", help="largest target (default 64)")
    inspect.add_argument("--per", choices=("layer", "channel"), default="layer", help="targets per (default layer)")
    inspect.add_argument("--json", metavar="FILE", help="write the report as JSON")
    inspect.add_argument("--csv", metavar="FILE", help="write the sites as CSV")
    inspect.add_argument("--png", metavar="FILE", help="draw the report")
    inspect.set_defaults(command=_inspect)

    substitute = commands.add_parser(
        "substitute",
        help="swap to ReLU, correct, recover",
        description="Replaces every λ-GELU by ReLU and writes the state dict of the ReLU network.",
        epilog=_MODEL,
    )
    _add_common(substitute)
    substitute.add_argument("--output", required=True, metavar="FILE", help="state dict of the ReLU network")
    substitute.add_argument("--metric", metavar="module:function", help="takes the model and returns a number")
    substitute.add_argument("--metric-name", metavar="NAME", help="in the report (default: that of the function)")
    substitute.add_argument("--higher-is-better", action="store_true", help="of the metric; otherwise lower is better")
    substitute.add_argument(
        "--correction",
        choices=("none", "bias"),
        default="none",
        help="bias: fold E[ReLU - f] into the layers behind the sites, where that improves the metric",
    )
    substitute.add_argument("--add-bias", action="store_true", help="give layers without a bias one to correct")
    substitute.add_argument(
        "--max-loss",
        type=float,
        metavar="X",
        help="swap from the least harmful site on; leave the rest where the metric would lose more than X",
    )
    substitute.add_argument("--recover-steps", type=int, default=0, metavar="N", help="fine-tune for N steps of Adam")
    substitute.add_argument(
        "--loss", metavar="module:function", help="takes the model and a batch of the training data"
    )
    substitute.add_argument("--train-data", metavar="module:function", help="batches to recover with (default: --data)")
    substitute.add_argument("--lr", type=float, default=1e-4, help="learning rate of the recovery (default 1e-4)")
    substitute.add_argument("--report-json", metavar="FILE", help="write the report as JSON")
    substitute.add_argument("--report-csv", metavar="FILE", help="write the sites as CSV")
    substitute.add_argument("--report-png", metavar="FILE", help="draw the report")
    substitute.set_defaults(command=_substitute)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_source", metavar="MODEL", help="module:function, or the file of a checkpoint")
    parser.add_argument("--data", required=True, metavar="module:function", help="batches to calibrate with")
    parser.add_argument("--model", metavar="module:function", help="what makes the model of a file with a state dict")
    parser.add_argument("--checkpoint", metavar="FILE", help="state dict for a model that MODEL makes")
    parser.add_argument("--convert", action="store_true", help="replace GELU by λ-GELU at λ = 1 first")
    parser.add_argument("--trust", action="store_true", help="load files with Python objects, which can run any code")
    parser.add_argument("--batches", type=_positive, metavar="N", help="calibrate with N batches (default: all)")
    parser.add_argument("--device", default="cpu", help="where to run (default cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--traceback", action="store_true", help="where an error comes from")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
