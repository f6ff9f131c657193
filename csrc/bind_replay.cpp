#include "bindings.hpp"

namespace sacglam {
void bind_replay(pybind11::module_&) {}
}  // namespace sacglam
