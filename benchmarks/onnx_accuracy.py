"""What onnxruntime on a CPU makes of an exported λ-GELU in float32, against our op in float64: the rows of
benchmarks/results/onnx_accuracy.json and the table in docs/export.md."""

from __future__ import annotations

import io
import re
from pathlib import Path

import onnx
import onnxruntime
import torch

import lambda_gelu
from lambda_gelu.integrations.onnx import translation_table
from machine import write

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
COMMAND = "python benchmarks/onnx_accuracy.py"
HARDNESS = (1.0, 4.0, 64.0)
# of λx; beyond -5.5 erf in float32 is -1
INTERVALS = ((-1.0, 12.0), (-3.0, -1.0), (-4.0, -3.0), (-5.0, -4.0), (-12.0, -6.0))


class Functional(torch.nn.Module):
    def forward(self, x: torch.Tensor, hardness: torch.Tensor) -> torch.Tensor:
        return lambda_gelu.lambda_gelu(x, hardness)


def session(opset_version: int) -> onnxruntime.InferenceSession:
    program = torch.onnx.export(
        Functional(),
        (torch.randn(5), torch.ones(1)),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: "n"}, None),
        opset_version=opset_version,
        custom_translation_table=translation_table(),
    )
    file = io.BytesIO()
    onnx.save(program.model_proto, file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def measure() -> list[dict]:
    rows = []
    for opset_version, form in ((20, "Gelu"), (18, "Erf")):
        runtime = session(opset_version)
        for hardness in HARDNESS:
            for low, high in INTERVALS:
                x = (torch.linspace(low, high, 100_001, dtype=torch.float64) / hardness).float()
                (y,) = runtime.run(None, {"x": x.numpy(), "hardness": torch.tensor([hardness]).numpy()})
                exact = lambda_gelu.lambda_gelu(x.double(), hardness)
                error = (torch.from_numpy(y) - exact).abs()
                row = {"form": form, "opset": opset_version, "hardness": hardness, "from": low, "to": high}
                relative = (error / exact.abs())[exact != 0].max().item()
                rows.append(row | {"scaled": error.max().item() * hardness, "relative": relative})
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "| λx | Gelu: λ·\\|error\\| | relative | Erf: λ·\\|error\\| | relative |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for low, high in INTERVALS:
        cells = []
        for form in ("Gelu", "Erf"):
            here = [row for row in rows if row["form"] == form and (row["from"], row["to"]) == (low, high)]
            cells += [f"{max(row[key] for row in here):.1e}" for key in ("scaled", "relative")]
        lines.append(f"| {low:g} to {high:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    rows = measure()
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    print("wrote", write("onnx_accuracy", COMMAND, rows, versions))
    if DOCS.exists():
        marked = re.compile(r"(<!-- onnx-accuracy -->\n).*?(<!-- /onnx-accuracy -->)", re.DOTALL)
        DOCS.write_text(marked.sub(lambda m: f"{m[1]}{table(rows)}\n{m[2]}", DOCS.read_text()))
    print(table(rows))


if __name__ == "__main__":
    main()
