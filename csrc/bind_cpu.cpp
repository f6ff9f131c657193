// Bindings of the CPU kernels: NumPy views of tensors in, results written in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace py = pybind11;

namespace sacglam {
namespace {

using Floats = py::array_t<float>;
using Ints = py::array_t<std::int32_t>;
using MaybeFloats = std::optional<Floats>;
using MaybeInts = std::optional<Ints>;

void require(bool fine, const char* what) {
  if (!fine) throw std::invalid_argument(what);
}

bool dense(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

// [T, H, D] whose last dimension is dense.
struct Rows {
  explicit Rows(const Floats& array) {
    require(array.ndim() == 3 && (array.shape(2) <= 1 || array.strides(2) == sizeof(float)),
            "expected float32 [T, H, D] with a dense last dimension");
    data = array.data();
    token = array.strides(0) / static_cast<py::ssize_t>(sizeof(float));
    head = array.strides(1) / static_cast<py::ssize_t>(sizeof(float));
  }
  const float* data;
  std::int64_t token, head;
};

float* writable(Floats& array, std::int64_t size) {
  require(dense(array) && array.writeable() && array.size() == size,
          "result: wrong size or layout");
  return array.mutable_data();
}
const float* readable(const Floats& array, std::int64_t size) {
  require(dense(array) && array.size() == size, "float32 array: wrong size or layout");
  return array.data();
}
const std::int32_t* readable(const Ints& array, std::int64_t size) {
  require(dense(array) && array.size() == size, "int32 array: wrong size or layout");
  return array.data();
}
template <class Array>
auto readable(const std::optional<Array>& array, std::int64_t size) {
  return array ? readable(*array, size) : nullptr;
}

// The layout of a pack, checked once; its arrays stay alive with it.
class Plan {
 public:
  Plan(Ints q_start, Ints k_start, std::int64_t queries, std::int64_t keys, MaybeInts end,
       MaybeInts q_node, MaybeInts q_pos, MaybeInts k_pos)
      : queries_(queries), keys_(keys), kept_{q_start, k_start} {
    const std::int64_t trees = q_start.size() - 1;
    require(trees >= 0 && trees <= (1 << 30), "q_start needs at least one entry");
    base_.trees = static_cast<std::int32_t>(trees);
    base_.q_start = readable(q_start, trees + 1);
    base_.k_start = readable(k_start, trees + 1);
    base_.end = readable(end, keys);
    base_.q_node = readable(q_node, queries);
    base_.q_pos = readable(q_pos, queries);
    base_.k_pos = readable(k_pos, keys);
    for (const MaybeInts& array : {end, q_node, q_pos, k_pos}) {
      if (array) kept_.push_back(*array);
    }
    rising(base_.q_start, queries, "q_start");
    rising(base_.k_start, keys, "k_start");
    for (std::int64_t p = 0; p < trees; ++p) check_tree(p);
  }

  std::int64_t queries() const { return queries_; }
  std::int64_t keys() const { return keys_; }
  std::int64_t longest() const { return longest_; }
  const cpu::Attention& base() const { return base_; }

 private:
  void rising(const std::int32_t* offsets, std::int64_t last, const char* name) const {
    bool fine = offsets[0] == 0 && offsets[base_.trees] == last;
    for (std::int32_t p = 0; p < base_.trees; ++p) fine = fine && offsets[p] <= offsets[p + 1];
    if (!fine) throw std::invalid_argument(std::string(name) + " must rise from 0 to the total");
  }
  // What the kernels rely on: every query is a token of its own tree, queries in order.
  void check_tree(std::int64_t p) {
    const std::int64_t begin = base_.k_start[p], stop = base_.k_start[p + 1];
    longest_ = std::max(longest_, stop - begin);
    if (base_.end == nullptr) return;
    for (std::int64_t j = begin; j < stop; ++j) require(base_.end[j] > j, "end[i] must be above i");
    std::int64_t last = begin - 1;
    for (std::int64_t i = base_.q_start[p]; i < base_.q_start[p + 1]; ++i) {
      const std::int64_t node = base_.q_node != nullptr ? base_.q_node[i] : i;
      require(node > last && node < stop, "queries must be tokens of their tree, in order");
      last = node;
    }
  }

  cpu::Attention base_{};
  std::int64_t queries_, keys_, longest_ = 0;
  std::vector<Ints> kept_;
};

cpu::Attention describe(const Plan& plan, const Floats& q, const Floats& k, const Floats& v,
                        const MaybeFloats& bias, const MaybeFloats& cos, const MaybeFloats& sin,
                        float scale) {
  cpu::Attention a = plan.base();
  const Rows query(q), key(k), value(v);
  a.q = query.data, a.q_token = query.token, a.q_head = query.head;
  a.k = key.data, a.k_token = key.token, a.k_head = key.head;
  a.v = value.data, a.v_token = value.token, a.v_head = value.head;
  require(q.shape(0) == plan.queries() && k.shape(0) == plan.keys() && v.shape(0) == plan.keys() &&
              k.shape(1) == v.shape(1) && k.shape(1) > 0 && q.shape(1) % k.shape(1) == 0 &&
              q.shape(2) == k.shape(2) && q.shape(2) == v.shape(2) && q.shape(2) > 0 &&
              q.shape(2) <= cpu::kernels().max_head_dim,
          "q, k, v do not fit the plan or each other");
  a.heads = static_cast<std::int32_t>(q.shape(1));
  a.kv_heads = static_cast<std::int32_t>(k.shape(1));
  a.dim = static_cast<std::int32_t>(q.shape(2));
  a.scale = scale;
  if (bias) {
    require(
        bias->ndim() == 2 && bias->shape(1) % 2 == 1 && a.q_pos != nullptr && a.k_pos != nullptr,
        "bias: need [H, 2R + 1] and a plan with positions");
    a.bias = readable(*bias, a.heads * bias->shape(1));
    a.radius = static_cast<std::int32_t>(bias->shape(1) / 2);
  }
  if (cos && sin) {
    require(a.dim % 2 == 0 && (a.end != nullptr), "rotary: need an even dimension and a forest");
    a.cos = readable(*cos, plan.keys() * a.dim);
    a.sin = readable(*sin, plan.keys() * a.dim);
  }
  return a;
}

using Kernel = void (*)(const cpu::Attention&, std::int64_t, float*);

void run(const cpu::Attention& a, std::int64_t longest, int threads, Kernel kernel) {
  const py::gil_scoped_release unlocked;
  const auto floats = static_cast<std::size_t>(cpu::kernels().attention_scratch(a, longest));
  const auto members = static_cast<std::size_t>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(threads, a.tasks())));
  const auto scratch = std::make_unique_for_overwrite<float[]>(floats * members);
  cpu::parallel_for(threads, a.tasks(), [&](int thread, std::int64_t task) {
    kernel(a, task, scratch.get() + static_cast<std::size_t>(thread) * floats);
  });
}

void attention_forward(const Plan& plan, const Floats& q, const Floats& k, const Floats& v,
                       const MaybeFloats& bias, const MaybeFloats& cos, const MaybeFloats& sin,
                       float scale, Floats out, Floats lse, int threads) {
  cpu::Attention a = describe(plan, q, k, v, bias, cos, sin, scale);
  a.out = writable(out, q.size());
  a.lse = writable(lse, plan.queries() * a.heads);
  run(a, plan.longest(), threads, cpu::kernels().attention_forward);
}

void attention_backward(const Plan& plan, const Floats& q, const Floats& k, const Floats& v,
                        const MaybeFloats& bias, const MaybeFloats& cos, const MaybeFloats& sin,
                        float scale, Floats out, Floats lse, const Floats& grad, Floats dq,
                        Floats dk, Floats dv, std::optional<Floats> dbias, int threads) {
  cpu::Attention a = describe(plan, q, k, v, bias, cos, sin, scale);
  a.out = writable(out, q.size());
  a.lse = writable(lse, plan.queries() * a.heads);
  require(grad.ndim() == 3 && grad.size() == q.size(), "grad does not fit q");
  const Rows rows(grad);
  a.grad = rows.data, a.grad_token = rows.token, a.grad_head = rows.head;
  a.dq = writable(dq, q.size());
  a.dk = writable(dk, k.size());
  a.dv = writable(dv, v.size());
  if (dbias) a.dbias = writable(*dbias, a.trees * a.heads * (2 * std::int64_t{a.radius} + 1));
  require(!dbias || bias, "dbias needs a bias");
  run(a, plan.longest(), threads, cpu::kernels().attention_backward);
}

cpu::RmsNorm describe(const Floats& x, const Floats& weight, float eps) {
  require(x.ndim() == 2 && x.shape(1) > 0, "x: expected float32 [T, D]");
  cpu::RmsNorm n{};
  n.rows = x.shape(0);
  n.dim = static_cast<std::int32_t>(x.shape(1));
  n.x = readable(x, x.size());
  n.weight = readable(weight, n.dim);
  n.eps = eps;
  return n;
}

void rms_norm_forward(const Floats& x, const MaybeFloats& add, const Floats& weight, float eps,
                      std::optional<Floats> sum, Floats y, Floats rstd, int threads) {
  cpu::RmsNorm n = describe(x, weight, eps);
  require(add.has_value() == sum.has_value(), "add and sum go together");
  n.add = readable(add, x.size());
  n.sum = sum ? writable(*sum, x.size()) : nullptr;
  n.y = writable(y, x.size());
  n.rstd = writable(rstd, n.rows);
  const py::gil_scoped_release unlocked;
  cpu::parallel_for(threads, n.tasks(),
                    [&](int, std::int64_t task) { cpu::kernels().rms_norm_forward(n, task); });
}

void rms_norm_backward(const Floats& x, const Floats& weight, Floats rstd, const Floats& grad,
                       const MaybeFloats& grad_sum, Floats dx, std::optional<Floats> dweight,
                       int threads) {
  cpu::RmsNorm n = describe(x, weight, 0.0F);
  n.rstd = writable(rstd, n.rows);
  n.grad = readable(grad, x.size());
  n.grad_sum = readable(grad_sum, x.size());
  n.dx = writable(dx, x.size());
  n.dweight = dweight ? writable(*dweight, n.tasks() * n.dim) : nullptr;
  const py::gil_scoped_release unlocked;
  cpu::parallel_for(threads, n.tasks(),
                    [&](int, std::int64_t task) { cpu::kernels().rms_norm_backward(n, task); });
}

cpu::Gated describe(const Floats& gate, const Floats& up, const std::string& activation) {
  cpu::Gated g{};
  g.count = gate.size();
  g.gate = readable(gate, g.count);
  g.up = readable(up, g.count);
  require(activation == "silu" || activation == "gelu_tanh", "activation: silu or gelu_tanh");
  g.activation = activation == "silu" ? cpu::Activation::kSilu : cpu::Activation::kGeluTanh;
  return g;
}

void gated_forward(const Floats& gate, const Floats& up, const std::string& activation, Floats y,
                   int threads) {
  cpu::Gated g = describe(gate, up, activation);
  g.y = writable(y, g.count);
  const py::gil_scoped_release unlocked;
  cpu::parallel_for(threads, g.tasks(),
                    [&](int, std::int64_t task) { cpu::kernels().gated_forward(g, task); });
}

void gated_backward(const Floats& gate, const Floats& up, const std::string& activation,
                    const Floats& grad, Floats dgate, Floats dup, int threads) {
  cpu::Gated g = describe(gate, up, activation);
  g.grad = readable(grad, g.count);
  g.dgate = writable(dgate, g.count);
  g.dup = writable(dup, g.count);
  const py::gil_scoped_release unlocked;
  cpu::parallel_for(threads, g.tasks(),
                    [&](int, std::int64_t task) { cpu::kernels().gated_backward(g, task); });
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.def("cpu_level", [] { return cpu::kernels().name; }, "Instruction set that was chosen.");
  m.def("cpu_max_head_dim", [] { return cpu::kernels().max_head_dim; });
  py::class_<Plan>(m, "CpuPlan", "The layout of packed tokens, checked once.")
      .def(py::init<Ints, Ints, std::int64_t, std::int64_t, MaybeInts, MaybeInts, MaybeInts,
                    MaybeInts>(),
           py::arg("q_start").noconvert(), py::arg("k_start").noconvert(), py::arg("queries"),
           py::arg("keys"), py::arg("end").noconvert(), py::arg("q_node").noconvert(),
           py::arg("q_pos").noconvert(), py::arg("k_pos").noconvert());
  const auto no = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("attention_forward", &attention_forward, py::arg("plan"), no("q"), no("k"), no("v"),
        no("bias"), no("cos"), no("sin"), py::arg("scale"), no("out"), no("lse"),
        py::arg("threads"));
  m.def("attention_backward", &attention_backward, py::arg("plan"), no("q"), no("k"), no("v"),
        no("bias"), no("cos"), no("sin"), py::arg("scale"), no("out"), no("lse"), no("grad"),
        no("dq"), no("dk"), no("dv"), no("dbias"), py::arg("threads"));
  m.def("rms_norm_forward", &rms_norm_forward, no("x"), no("add"), no("weight"), py::arg("eps"),
        no("sum"), no("y"), no("rstd"), py::arg("threads"));
  m.def("rms_norm_backward", &rms_norm_backward, no("x"), no("weight"), no("rstd"), no("grad"),
        no("grad_sum"), no("dx"), no("dweight"), py::arg("threads"));
  m.def("gated_forward", &gated_forward, no("gate"), no("up"), py::arg("activation"), no("y"),
        py::arg("threads"));
  m.def("gated_backward", &gated_backward, no("gate"), no("up"), py::arg("activation"), no("grad"),
        no("dgate"), no("dup"), py::arg("threads"));
}

}  // namespace sacglam
