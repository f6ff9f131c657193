// An array of 2^31 places of which only those in use cost memory, and which never moves.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <unordered_map>

namespace sacglam::replay {

// Address space is reserved for all places; the system provides a page when it is first written,
// and gets it back when all of its places were given back. A place that was never taken reads as
// zeros. So does, at some time after, one that was given back: its owner marks it as empty, by a
// zero, before it gives it back, and readers look at that mark alone.
template <class T>
class ReservedArray {
 public:
  ReservedArray() {
    for (room_ = std::size_t{1} << 31; room_ >= kLeast; room_ /= 2) {
      void* memory = ::mmap(nullptr, room_ * sizeof(T), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) continue;  // the process may not reserve so much
      data_ = static_cast<T*>(memory);
#ifdef MADV_NOHUGEPAGE
      ::madvise(memory, room_ * sizeof(T), MADV_NOHUGEPAGE);  // pages are to come back one by one
#endif
      return;
    }
    throw std::bad_alloc();
  }
  ReservedArray(const ReservedArray&) = delete;
  ReservedArray& operator=(const ReservedArray&) = delete;
  ~ReservedArray() { ::munmap(data_, room_ * sizeof(T)); }

  T* data() const { return data_; }
  std::size_t room() const { return room_; }
  std::size_t bytes() const { return used_.size() * page_; }

  void take(std::size_t place) { ++used_[place / per_page()]; }
  // Places are taken in ascending order, below `end` by now.
  void give_back(std::size_t place, std::size_t end) {
    const std::size_t page = place / per_page();
    const auto found = used_.find(page);
    if (--found->second > 0 || (page + 1) * per_page() > end) return;
    used_.erase(found);
    ::madvise(reinterpret_cast<std::byte*>(data_) + page * page_, page_, MADV_DONTNEED);
  }

 private:
  static constexpr std::size_t kLeast = std::size_t{1} << 20;
  std::size_t per_page() const { return page_ / sizeof(T); }

  const std::size_t page_ = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  T* data_ = nullptr;
  std::size_t room_ = 0;
  std::unordered_map<std::size_t, std::size_t> used_;  // page -> places in use
};

}  // namespace sacglam::replay
