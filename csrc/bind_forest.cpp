// Bindings of the prefix-forest packer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "forest.hpp"

namespace py = pybind11;

namespace sacglam {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::span<const T> view(const Array<T>& array, const char* name) {
  if (array.ndim() != 1)
    throw std::invalid_argument(std::string(name) + " must be one-dimensional");
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
Array<T> copy(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Hands a vector to NumPy without a copy: the capsule owns it.
Array<std::int64_t> take(std::vector<std::int64_t>&& values) {
  auto owner = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  const auto* data = owner->data();
  const auto size = static_cast<py::ssize_t>(owner->size());
  const py::capsule capsule(owner.release(), [](void* p) {
    std::unique_ptr<std::vector<std::int64_t>>(static_cast<std::vector<std::int64_t>*>(p));
  });
  return Array<std::int64_t>(size, data, capsule);
}

using SharedSet = std::shared_ptr<forest::CandidateSet>;

py::dict pack(const forest::Packer& packer, const Array<std::int32_t>& prompts,
              const Array<std::int64_t>& offsets, const std::vector<SharedSet>& sets,
              bool keep_leaves, const std::optional<Array<std::int64_t>>& rows,
              std::int64_t prefix) {
  const auto prompt_view = view(prompts, "prompts");
  const auto offset_view = view(offsets, "offsets");
  std::vector<const forest::CandidateSet*> set_view(sets.size());
  std::ranges::transform(sets, set_view.begin(), [](const SharedSet& set) { return set.get(); });
  std::span<const std::int64_t> row_view;
  std::vector<std::int64_t> all_rows;
  if (rows) {
    row_view = view(*rows, "rows");
  } else {
    all_rows.resize(set_view.size());
    std::iota(all_rows.begin(), all_rows.end(), std::int64_t{0});
    row_view = all_rows;
  }
  forest::Packed packed;
  {
    const py::gil_scoped_release unlocked;
    packed = packer.pack(prompt_view, offset_view, set_view, row_view, keep_leaves, prefix);
  }
  py::dict out;
  out["ids"] = take(std::move(packed.ids));
  out["pos"] = take(std::move(packed.pos));
  out["end"] = take(std::move(packed.end));
  out["tree_start"] = take(std::move(packed.tree_start));
  out["head_rows"] = take(std::move(packed.head_rows));
  out["edge_row"] = take(std::move(packed.edge_row));
  out["edge_token"] = take(std::move(packed.edge_token));
  out["path_offsets"] = take(std::move(packed.path_offsets));
  out["path_edges"] = take(std::move(packed.path_edges));
  out["leaf"] = take(std::move(packed.leaf));
  out["candidate_offsets"] = take(std::move(packed.candidate_offsets));
  out["tree_of_row"] = take(std::move(packed.tree_of_row));
  out["encoder_ids"] = take(std::move(packed.encoder_ids));
  out["encoder_start"] = take(std::move(packed.encoder_start));
  out["prefix"] = packed.prefix;
  out["max_candidates"] = packed.max_candidates;
  return out;
}

}  // namespace

void bind_forest(py::module_& m) {
  using forest::CandidateSet;
  py::class_<CandidateSet, SharedSet>(m, "CandidateSet", "An ordered set of candidate actions.")
      .def(py::init([](const Array<std::int32_t>& tokens, const Array<std::int64_t>& offsets) {
             return std::make_shared<CandidateSet>(view(tokens, "tokens"),
                                                   view(offsets, "offsets"));
           }),
           py::arg("tokens").noconvert(), py::arg("offsets").noconvert())
      .def("__len__", [](const CandidateSet& self) { return self.offsets().size() - 1; })
      .def("__eq__",
           [](const CandidateSet& self, const py::object& other) {
             return py::isinstance<CandidateSet>(other) && self == other.cast<CandidateSet&>();
           })
      .def("__hash__", [](const CandidateSet& self) { return self.hash(); })
      .def_property_readonly("tokens", [](const CandidateSet& self) { return copy(self.tokens()); })
      .def_property_readonly("offsets",
                             [](const CandidateSet& self) { return copy(self.offsets()); });
  py::class_<forest::Packer>(m, "ForestPacker",
                             "Packs prompts and candidate tries into one row of tokens.")
      .def(py::init<std::int64_t>(), py::arg("decoder_start") = -1)
      .def("pack", &pack, py::arg("prompts").noconvert(), py::arg("offsets").noconvert(),
           py::arg("sets"), py::arg("keep_leaves") = true, py::arg("rows") = py::none(),
           py::arg("prefix") = 0);
}

}  // namespace sacglam
