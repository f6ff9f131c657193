// One function per native subject; each is defined in its own bind_<subject>.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace sacglam {

void bind_replay(pybind11::module_& m);
void bind_forest(pybind11::module_& m);
void bind_cpu(pybind11::module_& m);

}  // namespace sacglam
