// The atomics of Relacy, as the templates of the replay buffer take them. Include after both.
#pragma once

struct RelacySync {
  template <class T>
  using Atomic = rl::atomic<T>;
  template <class T>
  static T load_relaxed(const rl::atomic<T>& a) {
    return a.load(rl::mo_relaxed, $);
  }
  template <class T>
  static T load_acquire(const rl::atomic<T>& a) {
    return a.load(rl::mo_acquire, $);
  }
  template <class T>
  static void store_relaxed(rl::atomic<T>& a, T value) {
    a.store(value, rl::mo_relaxed, $);
  }
  template <class T>
  static void store_release(rl::atomic<T>& a, T value) {
    a.store(value, rl::mo_release, $);
  }
  template <class T>
  static bool compare_exchange(rl::atomic<T>& a, T& seen, T value) {
    return a.compare_exchange_strong(seen, value, rl::mo_acq_rel, $, rl::mo_acquire, $);
  }
  static void fence_acquire() { rl::atomic_thread_fence(rl::mo_acquire, $); }
  static void fence_release() { rl::atomic_thread_fence(rl::mo_release, $); }
};
