// The bindings of sacglam._C: no logic lives here. Each bind_* function is beside its subject.
#include <pybind11/pybind11.h>

#include "bindings.hpp"

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Native parts of sacglam: replay buffer, prefix-forest packer, CPU kernels.";
  sacglam::bind_replay(m);
  sacglam::bind_forest(m);
  sacglam::bind_cpu(m);
}
