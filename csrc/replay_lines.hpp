// Arrays that begin with a cache line; large ones lie on huge pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace sacglam::replay {

struct FreeLines {
  std::size_t size = 0;
  template <class T>
  void operator()(T* p) const {
    std::destroy_n(p, size);
    std::free(p);
  }
};
template <class T>
using Lines = std::unique_ptr<T[], FreeLines>;

constexpr std::size_t kHugePage = std::size_t{1} << 21;

constexpr std::size_t unit_of(std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  return bytes >= kHugePage ? kHugePage : kLine;
}
// As many as are used up by an array of `bytes`.
constexpr std::size_t whole_units(std::size_t bytes) {
  return (bytes + unit_of(bytes) - 1) / unit_of(bytes) * unit_of(bytes);
}

// Memory for `bytes`. Who draws from all over a large array pays as much for the translation of
// addresses as for the data when pages are small.
inline void* allocate_lines(std::size_t bytes) {
  void* memory = std::aligned_alloc(unit_of(bytes), whole_units(bytes));
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Advice: nothing depends on it.
  if (bytes >= kHugePage) ::madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

template <class T>
Lines<T> make_lines(std::size_t size) {
  auto* data = static_cast<T*>(allocate_lines(size * sizeof(T)));
  std::uninitialized_value_construct_n(data, size);
  return Lines<T>(data, FreeLines{size});
}

}  // namespace sacglam::replay
