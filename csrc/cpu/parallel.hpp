// Runs tasks on the threads that torch's operations run on.
//
// A second pool of threads would contend with torch's, which spin for a while after each of its
// operations. torch's pool belongs to GNU OpenMP: where that library is loaded into the process it
// is called, and else all tasks run on the calling thread.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace sacglam::cpu {

// `body(thread, task)` for every task in [0, tasks); must not throw.
template <class Body>
void parallel_for(int threads, std::int64_t tasks, const Body& body) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Parallel gomp_parallel = [] {
    void* library = ::dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? Parallel{nullptr}
                              : reinterpret_cast<Parallel>(::dlsym(library, "GOMP_parallel"));
  }();
  struct Team {
    const Body& body;
    const std::int64_t tasks;
    std::atomic<int> threads{0};  // counts up: its values number the members
    std::atomic<std::int64_t> next{0};

    void work() {
      const int thread = threads.fetch_add(1, std::memory_order_relaxed);
      for (;;) {
        // Relaxed: tasks share nothing, and the end of the parallel region orders their results.
        const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= tasks) return;
        body(thread, task);
      }
    }
  } team{body, tasks};
  const auto wanted = static_cast<unsigned>(std::min<std::int64_t>(threads, tasks));
  if (wanted > 1 && gomp_parallel != nullptr) {
    gomp_parallel([](void* data) { static_cast<Team*>(data)->work(); }, &team, wanted, 0);
  } else {
    team.work();
  }
}

}  // namespace sacglam::cpu
