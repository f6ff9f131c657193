// The atomics that the lock-free parts of the replay buffer are written in.
//
// A protocol is a template on `Sync`, so that what runs in production is what is checked: the
// stress test defines SACGLAM_REPLAY_SYNC to inject delays between any two operations, the model
// checker instantiates the templates on atomics that it controls (tests/replay/models).
#pragma once

#include <atomic>

// GCC warns that the thread sanitizer does not know fences; nothing here relies on its knowing
// them, as every shared word is an atomic.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wtsan"
#endif

namespace sacglam::replay {

struct StdSync {
  template <class T>
  using Atomic = std::atomic<T>;

  template <class T>
  static T load_relaxed(const std::atomic<T>& a) {
    return a.load(std::memory_order_relaxed);
  }
  template <class T>
  static T load_acquire(const std::atomic<T>& a) {
    return a.load(std::memory_order_acquire);
  }
  template <class T>
  static void store_relaxed(std::atomic<T>& a, T value) {
    a.store(value, std::memory_order_relaxed);
  }
  template <class T>
  static void store_release(std::atomic<T>& a, T value) {
    a.store(value, std::memory_order_release);
  }
  // On failure `seen` becomes what is there. Success is a release and an acquire; failure an
  // acquire.
  template <class T>
  static bool compare_exchange(std::atomic<T>& a, T& seen, T value) {
    return a.compare_exchange_strong(seen, value, std::memory_order_acq_rel,
                                     std::memory_order_acquire);
  }
  static void fence_acquire() { std::atomic_thread_fence(std::memory_order_acquire); }
  static void fence_release() { std::atomic_thread_fence(std::memory_order_release); }
};

#ifdef SACGLAM_REPLAY_SYNC
using DefaultSync = SACGLAM_REPLAY_SYNC;
#else
using DefaultSync = StdSync;
#endif

}  // namespace sacglam::replay
