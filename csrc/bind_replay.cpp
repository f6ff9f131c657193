// Python bindings of the replay buffer. Inputs are copied while the GIL is held and validated as
// copies, so that no other thread can change what was checked.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

#include "bindings.hpp"
#include "replay.hpp"

namespace py = pybind11;

namespace sacglam {
namespace {

using namespace replay;

std::int64_t to_int(const py::handle& value, const char* name, std::int64_t low,
                    std::int64_t high) {
  const auto whole = py::reinterpret_steal<py::object>(
      PyBool_Check(value.ptr()) ? nullptr : PyNumber_Index(value.ptr()));
  if (!whole) {
    PyErr_Clear();
    throw ReplayFault(std::string(name) + " must be an integer, got " +
                      py::str(py::type::of(value)).cast<std::string>());
  }
  int overflow = 0;
  const long long out = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
  if (overflow != 0 || out < low || out > high) {
    throw ReplayFault(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                      std::to_string(high) + "], got " + py::str(whole).cast<std::string>());
  }
  return out;
}

std::int32_t to_id(const py::handle& value, const char* name) {
  return static_cast<std::int32_t>(
      to_int(value, name, 0, std::numeric_limits<std::int32_t>::max()));
}

bool to_bool(const py::handle& value, const char* name) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (py::str(py::type::of(value).attr("__name__")).cast<std::string>().rfind("bool", 0) == 0) {
    return PyObject_IsTrue(value.ptr()) == 1;  // numpy.bool_
  }
  throw ReplayFault(std::string(name) + " must be a bool, got " +
                    py::str(py::type::of(value)).cast<std::string>());
}

template <class T>
bool is_type(const py::array& a) {
  return py::detail::npy_api::get().PyArray_EquivTypes_(a.dtype().ptr(), py::dtype::of<T>().ptr());
}

template <class T>
bool is_aligned(const py::array& a) {
  return reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0;
}

template <class T>
bool is_plain(const py::array& a) {
  return is_type<T>(a) && (a.flags() & py::array::c_style) != 0 && is_aligned<T>(a);
}

// Any array as one of T, copied where it is of another type or not aligned.
constexpr int kCast = static_cast<int>(py::array::forcecast) |
                      static_cast<int>(py::detail::npy_api::NPY_ARRAY_ALIGNED_);
template <class T>
using Cast = py::array_t<T, kCast>;

py::array to_array(const py::handle& value, const char* name) {
  py::array a;
  try {
    a = py::isinstance<py::array>(value) ? py::reinterpret_borrow<py::array>(value)
                                         : py::array(py::reinterpret_borrow<py::object>(value));
  } catch (const py::error_already_set& error) {
    throw ReplayFault(std::string(name) + " cannot be read as an array: " + error.what());
  }
  if (a.ndim() != 1) {
    throw ReplayFault(std::string(name) + " must have one dimension, got " +
                      std::to_string(a.ndim()));
  }
  // A view may claim any size; copying it would ask the system for all of that.
  if (static_cast<std::size_t>(a.size()) > InternTable::kMaxSize) {
    throw ReplayFault(std::string(name) + " has " + std::to_string(a.size()) +
                      " entries, at most 2^30 can be taken");
  }
  return a;
}

// Any one-dimensional sequence of integers; int32 and int64 arrays take no detour.
template <class T>
std::vector<T> to_ints(const py::handle& value, const char* name) {
  py::array a = to_array(value, name);
  const auto size = static_cast<std::size_t>(a.size());
  if (size == 0) return {};
  if (is_plain<std::int32_t>(a)) {
    const auto* p = static_cast<const std::int32_t*>(a.data());
    return std::vector<T>(p, p + size);
  }
  const char kind = a.dtype().kind();
  if (kind != 'i' && kind != 'u') {
    throw ReplayFault(std::string(name) + " must hold integers, got dtype " +
                      py::str(a.dtype()).cast<std::string>());
  }
  std::vector<T> out(size);
  const bool wide = kind == 'u' && a.itemsize() == 8;
  const auto wide_values = wide ? Cast<std::uint64_t>(a) : Cast<std::uint64_t>();
  const auto values = Cast<std::int64_t>(a);
  for (std::size_t i = 0; i < size; ++i) {
    const std::int64_t v = values.at(static_cast<py::ssize_t>(i));
    const bool too_wide = wide && wide_values.at(static_cast<py::ssize_t>(i)) > INT64_MAX;
    if (too_wide || v < std::numeric_limits<T>::min() || v > std::numeric_limits<T>::max()) {
      throw ReplayFault(std::string(name) + "[" + std::to_string(i) + "] does not fit int" +
                        std::to_string(8 * sizeof(T)));
    }
    out[i] = static_cast<T>(v);
  }
  return out;
}

std::vector<float> to_floats(const py::handle& value, const char* name) {
  const py::array a = to_array(value, name);
  const auto size = static_cast<std::size_t>(a.size());
  if (size == 0) return {};
  if (is_plain<float>(a)) {
    const auto* p = static_cast<const float*>(a.data());
    return std::vector<float>(p, p + size);
  }
  const char kind = a.dtype().kind();
  if (kind != 'f' && kind != 'i' && kind != 'u') {
    throw ReplayFault(std::string(name) + " must hold real numbers, got dtype " +
                      py::str(a.dtype()).cast<std::string>());
  }
  const auto values = Cast<double>(a);
  std::vector<float> out(size);
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = static_cast<float>(values.at(static_cast<py::ssize_t>(i)));
  }
  return out;
}

std::vector<Op> to_ops(const py::handle& value, bool nested) {
  const auto fail = [&](const std::string& why) {
    throw ReplayFault("template: " + why + " in " + py::repr(value).cast<std::string>());
  };
  if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr())) fail("a list of parts is needed");
  std::vector<Op> ops;
  for (const py::handle part : value) {
    if (!PyTuple_Check(part.ptr()) && !PyList_Check(part.ptr())) fail("each part must be a tuple");
    const auto item = py::reinterpret_borrow<py::sequence>(part);
    if (item.size() == 0 || !py::isinstance<py::str>(item[0])) fail("a part begins with its name");
    const auto name = item[0].cast<std::string>();
    const auto arity = [&](std::size_t n) {
      if (item.size() != n) {
        fail("\"" + name + "\" takes " + std::to_string(n - 1) + " argument(s), got " +
             std::to_string(item.size() - 1));
      }
    };
    if (name == "literal") {
      arity(2);
      ops.push_back({Op::kLiteral, to_id(item[1], "template literal")});
    } else if (name == "observation") {
      arity(1);
      ops.push_back({Op::kObservation});
    } else if (name == "goal" && !nested) {
      arity(1);
      ops.push_back({Op::kGoal});
    } else if (name == "actions" && !nested) {
      arity(2);
      ops.push_back({Op::kActions, to_id(item[1], "template action separator")});
    } else if (name == "history" && !nested) {
      arity(3);
      ops.push_back({Op::kHistory, to_id(item[1], "template history"), to_ops(item[2], true)});
    } else if (name == "action" && nested) {
      arity(1);
      ops.push_back({Op::kAction});
    } else {
      fail("unknown part \"" + name + "\"" +
           (nested
                ? " (\"literal\", \"observation\", \"action\" are known here)"
                : " (\"literal\", \"goal\", \"observation\", \"actions\", \"history\" are known)"));
    }
  }
  return ops;
}

template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// A new array that owns memory filled by native code.
py::array_t<std::int32_t> adopt(std::unique_ptr<std::int32_t[]> data, std::size_t size) {
  std::int32_t* p = data.get();
  const py::capsule owner(p, [](void* q) { delete[] static_cast<std::int32_t*>(q); });
  data.release();
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(size), p, owner);
}

// A caller's array, as native code may write it without the GIL.
template <class T>
T* writable(const py::handle& value, const char* name, std::size_t need) {
  const auto refuse = [&](const std::string& why) {
    throw ReplayFault(std::string("out.") + name + " " + why);
  };
  if (!py::isinstance<py::array>(value)) refuse("must be a numpy array");
  auto a = py::reinterpret_borrow<py::array>(value);
  if (!is_type<T>(a)) {
    refuse("must have dtype " + py::str(py::dtype::of<T>()).template cast<std::string>() +
           ", got " + py::str(a.dtype()).template cast<std::string>());
  }
  if (a.ndim() != 1) refuse("must have one dimension");
  if ((a.flags() & py::array::c_style) == 0) refuse("must be contiguous");
  if (!a.writeable()) refuse("must be writable");
  if (!is_aligned<T>(a)) refuse("must be aligned");
  if (static_cast<std::size_t>(a.size()) < need) {
    refuse("has " + std::to_string(a.size()) + " entries, " + std::to_string(need) + " are needed");
  }
  return static_cast<T*>(a.mutable_data());
}

constexpr const char* kFields[] = {
    "prompt_ids",      "prompt_offsets", "candidates",    "next_prompt_ids", "next_prompt_offsets",
    "next_candidates", "action",         "n_step_return", "discount",        "weight",
    "steps",           "goal",           "relabeled",     "episode",         "step"};

BatchArrays arrays_of(const py::tuple& t, std::size_t rows) {
  BatchArrays out{};
  out.prompt_ids = t[0].is_none() ? nullptr : writable<std::int32_t>(t[0], kFields[0], 0);
  out.prompt_offsets = writable<std::int64_t>(t[1], kFields[1], rows + 1);
  out.candidates = writable<std::int32_t>(t[2], kFields[2], rows);
  out.next_prompt_ids = t[3].is_none() ? nullptr : writable<std::int32_t>(t[3], kFields[3], 0);
  out.next_prompt_offsets = writable<std::int64_t>(t[4], kFields[4], rows + 1);
  out.next_candidates = writable<std::int32_t>(t[5], kFields[5], rows);
  out.action = writable<std::int32_t>(t[6], kFields[6], rows);
  out.n_step_return = writable<float>(t[7], kFields[7], rows);
  out.discount = writable<float>(t[8], kFields[8], rows);
  out.weight = writable<float>(t[9], kFields[9], rows);
  out.steps = writable<std::int32_t>(t[10], kFields[10], rows);
  out.goal = writable<std::int32_t>(t[11], kFields[11], rows);
  out.relabeled = writable<std::uint8_t>(t[12], kFields[12], rows);
  out.episode = writable<std::int64_t>(t[13], kFields[13], rows);
  out.step = writable<std::int32_t>(t[14], kFields[14], rows);
  return out;
}

void require_room(const char* name, std::size_t room, std::size_t need) {
  if (need > room) {
    throw ReplayFault(std::string("out.") + name + " holds " + std::to_string(room) +
                      " token ids, this batch needs " + std::to_string(need) +
                      "; give a larger array, the same batch is drawn again");
  }
}

// Returns the fields of a Batch, in kFields' order; prompt arrays of `out` may be longer than
// what was drawn.
py::tuple sample(ReplayBuffer& buffer, const py::object& batch_size, const py::object& out) {
  const auto rows =
      static_cast<std::size_t>(to_int(batch_size, "batch_size", 1, std::int64_t{1} << 24));
  const auto n = static_cast<py::ssize_t>(rows);
  // A nested call cannot reach this scratch: nothing runs Python while it is in use.
  thread_local Plan scratch;
  if (!out.is_none()) {
    const auto given = out.cast<py::tuple>();
    if (given.size() != std::size(kFields)) throw ReplayFault("out must have every field");
    const BatchArrays to = arrays_of(given, rows);
    if (to.prompt_ids == nullptr || to.next_prompt_ids == nullptr) {
      throw ReplayFault("out.prompt_ids and out.next_prompt_ids must be numpy arrays");
    }
    const auto room = static_cast<std::size_t>(given[0].cast<py::array>().size());
    const auto next_room = static_cast<std::size_t>(given[3].cast<py::array>().size());
    {
      const py::gil_scoped_release release;
      buffer.sample(rows, scratch, [&](const Plan& plan) {
        require_room("prompt_ids", room, plan.prompt_tokens);
        require_room("next_prompt_ids", next_room, plan.next_tokens);
        return to;
      });
    }
    return given;  // counts a reference, which needs the GIL
  }
  py::tuple fresh = py::make_tuple(
      py::none(), py::array_t<std::int64_t>(n + 1), py::array_t<std::int32_t>(n), py::none(),
      py::array_t<std::int64_t>(n + 1), py::array_t<std::int32_t>(n), py::array_t<std::int32_t>(n),
      py::array_t<float>(n), py::array_t<float>(n), py::array_t<float>(n),
      py::array_t<std::int32_t>(n), py::array_t<std::int32_t>(n), py::array_t<std::uint8_t>(n),
      py::array_t<std::int64_t>(n), py::array_t<std::int32_t>(n));
  BatchArrays to = arrays_of(fresh, rows);
  std::unique_ptr<std::int32_t[]> prompt;
  std::unique_ptr<std::int32_t[]> next;
  std::size_t prompt_tokens = 0;
  std::size_t next_tokens = 0;
  {
    const py::gil_scoped_release release;
    buffer.sample(rows, scratch, [&](const Plan& plan) {
      prompt_tokens = plan.prompt_tokens;
      next_tokens = plan.next_tokens;
      prompt = std::make_unique_for_overwrite<std::int32_t[]>(prompt_tokens);
      next = std::make_unique_for_overwrite<std::int32_t[]>(next_tokens);
      to.prompt_ids = prompt.get();
      to.next_prompt_ids = next.get();
      return to;
    });
  }
  fresh[0] = adopt(std::move(prompt), prompt_tokens);
  fresh[3] = adopt(std::move(next), next_tokens);
  return fresh;
}

constexpr const char* kStrategies[] = {"none", "future", "final", "episode", "random"};
constexpr const char* kBalances[] = {"events", "goals"};

Settings settings_of(std::int64_t capacity, std::int32_t n_step, double gamma,
                     const std::string& strategy, double ratio, const std::string& balance,
                     float reward) {
  Settings s;
  s.capacity = capacity;
  s.n_step = n_step;
  s.gamma = gamma;
  s.her_ratio = ratio;
  s.her_reward = reward;
  const auto named = [](const std::string& what, const std::string& given, const auto& names) {
    std::uint32_t i = 0;
    for (const char* name : names) {
      if (given == name) return i;
      ++i;
    }
    throw ReplayFault("unknown " + what + " '" + given + "'");
  };
  s.strategy = static_cast<Strategy>(named("her_strategy", strategy, kStrategies));
  s.balance = static_cast<Balance>(named("her_balance", balance, kBalances));
  if (capacity < 1 || capacity > (std::int64_t{1} << 40) || n_step < 1 || !(gamma >= 0.0) ||
      gamma > 1.0 || !(ratio >= 0.0) || ratio > 1.0 || !std::isfinite(reward)) {
    throw ReplayFault("a setting of the replay buffer is out of range");
  }
  return s;
}

// On shared memory: a new one, the existing one of that name, or the one that another object has.
std::unique_ptr<ReplayBuffer> create(const std::string& name, const Settings& settings,
                                     std::uint64_t seed, std::int64_t texts, std::int64_t bytes) {
  return std::make_unique<ReplayBuffer>(settings, seed,
                                        SharedLog::create(name, settings, seed, {texts, bytes}));
}

std::unique_ptr<ReplayBuffer> attach(const std::string& name) {
  auto log = SharedLog::attach(name);
  const Settings settings = log->settings();
  const std::uint64_t seed = log->seed();
  return std::make_unique<ReplayBuffer>(settings, seed, std::move(log));
}

std::unique_ptr<ReplayBuffer> with_settings(const ReplayBuffer& buffer, const Settings& settings,
                                            std::uint64_t seed) {
  return std::make_unique<ReplayBuffer>(settings, seed, buffer.log()->reattach());
}

py::dict settings_dict(const ReplayBuffer& buffer) {
  const Settings& s = buffer.settings();
  py::dict d;
  d["capacity"] = s.capacity;
  d["n_step"] = s.n_step;
  d["gamma"] = s.gamma;
  d["her_strategy"] = kStrategies[static_cast<std::size_t>(s.strategy)];
  d["her_ratio"] = s.her_ratio;
  d["her_balance"] = kBalances[static_cast<std::size_t>(s.balance)];
  d["her_reward"] = s.her_reward;
  return d;
}

void translate(std::exception_ptr p) {
  const auto raise = [](const char* type, const char* message) {
    const py::object cls = py::module_::import("sacglam.errors").attr(type);
    PyErr_SetString(cls.ptr(), message);
  };
  try {
    if (p) std::rethrow_exception(p);
  } catch (const ReplayFault& fault) {
    raise("ReplayError", fault.what());
  } catch (const CheckpointFault& fault) {
    raise("CheckpointError", fault.what());
  }
}

}  // namespace

void bind_replay(py::module_& m) {
  py::register_local_exception_translator(&translate);
  using Release = py::call_guard<py::gil_scoped_release>;

  py::class_<Settings>(m, "ReplaySettings", "Checked settings of a replay buffer.")
      .def(py::init(&settings_of));
  py::class_<ReplayBuffer>(m, "Replay", "Native side of sacglam.replay.ReplayBuffer.")
      .def(py::init([](const Settings& s, std::uint64_t seed) {
        return std::make_unique<ReplayBuffer>(s, seed);
      }))
      .def_static("create", &create)
      .def_static("attach", &attach)
      .def("with_settings", &with_settings)
      .def("settings", &settings_dict)
      .def("seed", &ReplayBuffer::seed)
      .def("intern_text",
           [](ReplayBuffer& b, const py::object& ids) {
             const auto v = to_ints<std::int32_t>(ids, "ids");
             const py::gil_scoped_release release;
             return b.intern_text(v);
           })
      .def("intern_candidates",
           [](ReplayBuffer& b, const py::object& ids) {
             const auto v = to_ints<std::int32_t>(ids, "text_ids");
             const py::gil_scoped_release release;
             return b.intern_candidates(v);
           })
      .def("text", [](const ReplayBuffer& b,
                      const py::object& id) { return to_numpy(b.text(to_id(id, "text"))); })
      .def("candidate_set",
           [](const ReplayBuffer& b, const py::object& id) {
             return to_numpy(b.candidate_set(to_id(id, "candidates")));
           })
      .def("set_template",
           [](ReplayBuffer& b, const py::object& ops) { b.set_template(to_ops(ops, false)); })
      .def("add_episode",
           [](ReplayBuffer& b, const py::object& goal, const py::object& observations,
              const py::object& candidates, const py::object& actions, const py::object& rewards,
              const py::object& terminated, const py::object& truncated,
              const py::object& achieved_offsets, const py::object& achieved) {
             EpisodeInput e;
             e.goal = to_id(goal, "goal");
             e.observations = to_ints<std::int32_t>(observations, "observations");
             e.candidates = to_ints<std::int32_t>(candidates, "candidates");
             e.actions = to_ints<std::int32_t>(actions, "actions");
             e.rewards = to_floats(rewards, "rewards");
             e.terminated = to_bool(terminated, "terminated");
             e.truncated = to_bool(truncated, "truncated");
             e.achieved_offsets = to_ints<std::int64_t>(achieved_offsets, "achieved_offsets");
             e.achieved = to_ints<std::int32_t>(achieved, "achieved");
             const py::gil_scoped_release release;
             return b.add_episode(e);
           })
      .def("assemble",
           [](const ReplayBuffer& b, const py::object& goal, const py::object& observations,
              const py::object& candidates, const py::object& actions, const py::object& t) {
             const auto g = to_id(goal, "goal");
             const auto o = to_ints<std::int32_t>(observations, "observations");
             const auto c = to_ints<std::int32_t>(candidates, "candidates");
             const auto a = to_ints<std::int32_t>(actions, "actions");
             const auto step = to_int(t, "t", 0, std::numeric_limits<std::int32_t>::max());
             std::vector<std::int32_t> ids;
             {
               const py::gil_scoped_release release;
               ids = b.assemble(g, o, c, a, step);
             }
             return to_numpy(ids);
           })
      .def("sample", &sample)
      .def("save", &ReplayBuffer::save, Release())
      .def("load", &ReplayBuffer::load, Release())
      .def("steps", &ReplayBuffer::steps, Release())
      .def("stats", [](ReplayBuffer& b) {
        const Stats s = b.stats();
        py::dict d;
        d["steps"] = s.steps;
        d["episodes"] = s.episodes;
        d["evicted_steps"] = s.evicted_steps;
        d["goals"] = s.goals;
        d["bytes"] = s.bytes;
        d["shared_bytes"] = s.shared_bytes;
        d["bytes_per_step"] =
            s.steps == 0 ? 0.0 : static_cast<double>(s.bytes) / static_cast<double>(s.steps);
        d["samples"] = s.samples;
        d["batches"] = s.batches;
        d["redrawn"] = s.redrawn;
        d["her_share"] = s.her_share;
        d["texts"] = s.texts;
        d["candidate_sets"] = s.sets;
        return d;
      });
}

}  // namespace sacglam
