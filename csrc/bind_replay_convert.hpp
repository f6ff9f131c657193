// Python values and arrays as native ones, each checked, and back. Inputs are copied while the GIL
// is held and validated as copies, so that no other thread can change what was checked.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "replay.hpp"

namespace sacglam {

namespace py = pybind11;
using namespace replay;

// For a message, in ASCII. What cannot be shown (an integer of 5000 digits cannot) is named.
inline std::string shown(const py::handle& value) {
  const auto ascii = py::reinterpret_steal<py::object>(PyObject_ASCII(value.ptr()));
  if (!ascii) {
    PyErr_Clear();
    return "a value of " + py::str(py::type::of(value)).cast<std::string>();
  }
  const auto text = ascii.cast<std::string>();
  return text.size() <= 200 ? text : text.substr(0, 200) + "...";
}

inline std::int64_t to_int(const py::handle& value, const char* name, std::int64_t low,
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
                      std::to_string(high) + "], got " + shown(whole));
  }
  return out;
}

inline std::int32_t to_id(const py::handle& value, const char* name) {
  return static_cast<std::int32_t>(
      to_int(value, name, 0, std::numeric_limits<std::int32_t>::max()));
}

inline bool to_bool(const py::handle& value, const char* name) {
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
  // Nearly always numpy's own object for the type; never freed.
  static const PyObject* const usual = py::dtype::of<T>().release().ptr();
  if (py::detail::array_proxy(a.ptr())->descr == usual) return true;
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

inline py::array to_array(const py::handle& value, const char* name) {
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

template <class T>
std::vector<T> to_reals(const py::handle& value, const char* name) {
  const py::array a = to_array(value, name);
  const auto size = static_cast<std::size_t>(a.size());
  if (size == 0) return {};
  if (is_plain<float>(a)) {
    const auto* p = static_cast<const float*>(a.data());
    return std::vector<T>(p, p + size);
  }
  const char kind = a.dtype().kind();
  if (kind != 'f' && kind != 'i' && kind != 'u') {
    throw ReplayFault(std::string(name) + " must hold real numbers, got dtype " +
                      py::str(a.dtype()).cast<std::string>());
  }
  const auto values = Cast<double>(a);
  std::vector<T> out(size);
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(values.at(static_cast<py::ssize_t>(i)));
  }
  return out;
}

inline std::vector<float> to_floats(const py::handle& value, const char* name) {
  return to_reals<float>(value, name);
}
inline std::vector<double> to_doubles(const py::handle& value, const char* name) {
  return to_reals<double>(value, name);
}

inline std::vector<Op> to_ops(const py::handle& value, bool nested) {
  const auto fail = [&](const std::string& why) {
    throw ReplayFault("template: " + why + " in " + shown(value));
  };
  if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr())) fail("a list of parts is needed");
  std::vector<Op> ops;
  for (const py::handle part : value) {
    if (!PyTuple_Check(part.ptr()) && !PyList_Check(part.ptr())) fail("each part must be a tuple");
    const auto item = py::reinterpret_borrow<py::sequence>(part);
    if (item.size() == 0 || !py::isinstance<py::str>(item[0])) fail("a part begins with its name");
    if (!PyUnicode_IS_ASCII(py::object(item[0]).ptr())) fail("unknown part");
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
inline py::array_t<std::int32_t> adopt(std::unique_ptr<std::int32_t[]> data, std::size_t size) {
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

}  // namespace sacglam
