"""The package itself: import, build information, stubs."""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lambda_gelu
from lambda_gelu import _C, _torch_version

PACKAGE = Path(lambda_gelu.__file__).parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_build_info_says_what_was_built_and_what_runs():
    info = lambda_gelu.build_info()
    assert info["version"] == lambda_gelu.__version__
    assert info["torch_version"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["cpu_target"] in info["cpu_targets"]
    assert info["cpu_targets"][-1] == "scalar"
    assert json.loads(json.dumps(info)) == info


def test_build_info_says_for_which_gpus_there_are_kernels():
    info = lambda_gelu.build_info()
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("lambda_gelu::lambda_gelu", "CUDA")
    if info["cuda_archs"]:
        assert registered
        assert re.fullmatch(r"\d+\.\d+", info["cuda_version"])
        assert all(re.fullmatch(r"\d+[af]?(\+PTX|-virtual)?", arch) for arch in info["cuda_archs"])
        assert len({re.match(r"\d+[af]?", arch)[0] for arch in info["cuda_archs"]}) == len(info["cuda_archs"])
    else:
        assert info["cuda_version"] is None


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_the_library_loads_where_there_is_no_cuda():
    (library,) = (Path(_C.__file__).parent / "lib").glob("liblambda_gelu.so")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed and "libc10.so" in needed
    assert not [name for name in needed if re.match(r"libcu|libnv|libc10_cuda|libtorch_cuda", name)]


def test_the_cpu_target_can_be_forced_and_released():
    best = lambda_gelu.build_info()["cpu_target"]
    try:
        for name in _C.cpu_targets():
            _C.set_cpu_target(name)
            assert _C.cpu_target() == name
        with pytest.raises(ValueError, match="riscv"):
            _C.set_cpu_target("riscv")
        assert _C.cpu_target() == "scalar"
    finally:
        _C.set_cpu_target("")
    assert _C.cpu_target() == best == _C.cpu_targets()[0]


def test_cmake_prefix_path_lies_beside_the_compiled_module():
    assert Path(lambda_gelu.cmake_prefix_path) == Path(_C.__file__).resolve().parent / "share" / "cmake"


def test_everything_in_all_exists_and_has_a_docstring():
    for name in lambda_gelu.__all__:
        value = getattr(lambda_gelu, name)
        assert name == "cmake_prefix_path" or value.__doc__, name
    assert sorted(lambda_gelu.__all__) == lambda_gelu.__all__


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
    for name in lambda_gelu.__all__:
        value = getattr(lambda_gelu, name)
        functions = [value] if inspect.isfunction(value) else []
        if inspect.isclass(value):
            functions = [member for key, member in inspect.getmembers(value, inspect.isfunction) if key in vars(value)]
            functions = [function for function in functions if not function.__name__.startswith("__")]
        for function in functions:
            signature = inspect.signature(function)
            assert signature.return_annotation is not inspect.Signature.empty, function
            for parameter in signature.parameters.values():
                assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty, function


def test_the_stubs_list_exactly_what_the_native_module_has():
    tree = ast.parse((PACKAGE / "_C.pyi").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(functions) | set(classes) == {name for name in dir(_C) if not name.startswith("_")}
    for name, node in functions.items():
        signature = getattr(_C, name).__doc__.splitlines()[0]
        for argument in node.args.args:
            assert f"{argument.arg}: " in signature, name
        assert signature.count(": ") == len(node.args.args), name
    for name, node in classes.items():
        members = {member.name for member in node.body if member.name != "__init__"}
        assert members == {member for member in vars(getattr(_C, name)) if not member.startswith("_")}


# --- the torch it was built against ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "built, running", [("2.13.0", "2.13.1+cu130"), ("2.13.0+cpu", "2.13.0"), ("2.13.0", "2.13.0a0+git")]
)
def test_versions_of_the_same_minor_are_accepted(built, running):
    _torch_version.check_torch_version(built, running)


@pytest.mark.parametrize("built, running", [("2.13.0", "2.12.1"), ("2.1.0", "2.13.0"), ("2.13.0", "3.13.0")])
def test_other_versions_are_refused_in_one_sentence(built, running):
    with pytest.raises(ImportError) as refusal:
        _torch_version.check_torch_version(built, running)
    message = str(refusal.value)
    assert f"built against torch {built}" in message and f"torch {running} is installed" in message
    assert "pip install --no-build-isolation --no-cache-dir" in message  # the wheel for the other torch is cached
    assert "\n" not in message


def test_importing_under_another_torch_refuses_before_the_native_module_is_loaded():
    result = run_python(
        "import sys, torch\n"
        "torch.__version__ = '2.99.0'\n"
        "try:\n"
        "    import lambda_gelu\n"
        "except ImportError as error:\n"
        "    print(error, 'lambda_gelu._C' in sys.modules, sep='|')\n"
    )
    message, loaded = result.stdout.strip().split("|")
    assert "torch 2.99.0 is installed" in message and loaded == "False"


# --- import ----------------------------------------------------------------------------------------------------------


def test_the_core_imports_torch_and_nothing_else():
    result = run_python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import lambda_gelu\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'torch', 'lambda_gelu'}))\n"
    )
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stderr


def test_an_error_in_cpp_keeps_its_type_in_python():
    with pytest.raises(ValueError, match="hardness"):
        _C.gate_gap(-1.0)
    with pytest.raises(TypeError):
        _C.gate_gap("1")
