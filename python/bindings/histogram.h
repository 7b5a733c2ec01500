#pragma once

#include <torch/csrc/utils/pybind.h>

void bind_histogram(py::module_& m);
