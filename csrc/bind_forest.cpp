#include "bindings.hpp"

namespace sacglam {
void bind_forest(pybind11::module_&) {}
}  // namespace sacglam
