// What the replay buffer's stress tests share: injected delays and deaths, and episodes that tell
// what they are.
//
// Every episode is a function of its key, every text names the key and the step it belongs to, so
// that each sampled row can be recomputed in full: torn data, foreign goals, wrong neighbours,
// wrong returns are all visible.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace stress {

inline std::atomic<unsigned> delay_permille{0};
inline std::atomic<unsigned> deaths_per_million{0};

inline std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15ULL;
  return x ^ (x >> 29);
}

// Between any two steps of a protocol, now and then: give up the processor, or sleep, or die.
inline void pause_sometimes() {
  const unsigned deadliness = deaths_per_million.load(std::memory_order_relaxed);
  const unsigned permille = delay_permille.load(std::memory_order_relaxed);
  if (permille == 0 && deadliness == 0) return;
  static thread_local std::uint64_t state =
      mix(std::hash<std::thread::id>{}(std::this_thread::get_id()) +
          static_cast<std::uint64_t>(::getpid()));
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  const auto dice = static_cast<unsigned>(state >> 33) % 100000;
  if (dice < permille * 10) std::this_thread::yield();
  if (dice < permille / 10) std::this_thread::sleep_for(std::chrono::microseconds(200));
  if (static_cast<unsigned>(mix(state) % 1000000) < deadliness) ::raise(SIGKILL);
}

struct DelaySync {
  template <class T>
  using Atomic = std::atomic<T>;
  template <class T>
  static T load_relaxed(const std::atomic<T>& a) {
    pause_sometimes();
    return a.load(std::memory_order_relaxed);
  }
  template <class T>
  static T load_acquire(const std::atomic<T>& a) {
    pause_sometimes();
    return a.load(std::memory_order_acquire);
  }
  template <class T>
  static void store_relaxed(std::atomic<T>& a, T value) {
    pause_sometimes();
    a.store(value, std::memory_order_relaxed);
  }
  template <class T>
  static void store_release(std::atomic<T>& a, T value) {
    pause_sometimes();
    a.store(value, std::memory_order_release);
  }
  template <class T>
  static bool compare_exchange(std::atomic<T>& a, T& seen, T value) {
    pause_sometimes();
    return a.compare_exchange_strong(seen, value, std::memory_order_acq_rel,
                                     std::memory_order_acquire);
  }
  static void fence_acquire() { std::atomic_thread_fence(std::memory_order_acquire); }
  static void fence_release() { std::atomic_thread_fence(std::memory_order_release); }
};

}  // namespace stress

#define SACGLAM_REPLAY_SYNC ::stress::DelaySync
#include "replay.hpp"

namespace stress {

using namespace sacglam::replay;

constexpr int kKeys = 48;
constexpr int kLongest = 9;
constexpr int kStep = 3;
constexpr double kGamma = 0.5;

inline int length_of(int key) { return 1 + key % kLongest; }
inline bool terminated(int key) { return key % 2 == 0; }
inline float reward_of(int key, int t) { return static_cast<float>((key * 7 + t * 3) % 11) - 5.0F; }
inline bool achieves(int key, int t) { return key % 5 != 0 && (key + t) % 3 == 0; }

struct World {
  std::int32_t observation[kKeys][kLongest + 1];
  std::int32_t goal[kKeys][kLongest];  // achieved by step t of an episode of this key
  std::int32_t set[kKeys][kLongest + 1];
  std::int32_t own_goal[kKeys];
  std::int32_t separator;

  void intern(ReplayBuffer& buffer) {
    separator = buffer.intern_text({7});
    std::vector<std::int32_t> actions;
    for (int i = 0; i < 5; ++i) actions.push_back(buffer.intern_text({50000 + i, 50000 + i}));
    for (int k = 0; k < kKeys; ++k) {
      own_goal[k] = buffer.intern_text({40000 + k});
      for (int t = 0; t <= kLongest; ++t) {
        observation[k][t] = buffer.intern_text({k, 100 + t, k, k, k, k, k, k, k, 100 + t});
        // A set of its own for each (key, step), whose size depends on them.
        std::vector<std::int32_t> set_ids = {buffer.intern_text({30000 + k * 100 + t})};
        for (int i = 0; i < (k + t) % 4; ++i) set_ids.push_back(actions[static_cast<unsigned>(i)]);
        set[k][t] = buffer.intern_candidates(set_ids);
        if (t < kLongest) goal[k][t] = buffer.intern_text({20000 + k, t});
      }
    }
    form(buffer);
  }
  void form(ReplayBuffer& buffer) const {
    buffer.set_template({{Op::kGoal},
                         {Op::kHistory, 2, {{Op::kObservation}, {Op::kAction}}},
                         {Op::kObservation},
                         {Op::kActions, separator}});
  }
  int action(int key, int t) const { return t % (1 + (key + t) % 4); }

  EpisodeInput episode(int key) const {
    EpisodeInput e;
    e.goal = own_goal[key];
    e.achieved_offsets.push_back(0);
    for (int t = 0; t <= length_of(key); ++t) {
      e.observations.push_back(observation[key][t]);
      e.candidates.push_back(set[key][t]);
      if (t == length_of(key)) break;
      e.actions.push_back(action(key, t));
      e.rewards.push_back(reward_of(key, t));
      if (achieves(key, t)) e.achieved.push_back(goal[key][t]);
      e.achieved_offsets.push_back(static_cast<std::int64_t>(e.achieved.size()));
    }
    e.terminated = terminated(key);
    e.truncated = !e.terminated;
    return e;
  }
};

inline std::atomic<std::uint64_t> rows_checked{0};
inline std::atomic<std::uint64_t> failures{0};

inline void complain(const char* what, int key, int t) {
  if (failures.fetch_add(1) < 10) std::fprintf(stderr, "WRONG %s: key %d, step %d\n", what, key, t);
}

struct Arrays {
  explicit Arrays(std::size_t rows)
      : i32(7, std::vector<std::int32_t>(rows)),
        i64(4, std::vector<std::int64_t>(rows + 1)),
        f32(3, std::vector<float>(rows)),
        u8(rows) {}
  BatchArrays operator()(const Plan& plan) {
    prompt.assign(plan.prompt_tokens, -1);
    next.assign(plan.next_tokens, -1);
    return {prompt.data(), i64[0].data(), i32[0].data(), next.data(),
            i64[1].data(), i32[1].data(), i32[2].data(), f32[0].data(),
            f32[1].data(), f32[2].data(), i32[3].data(), i32[4].data(),
            u8.data(),     i64[2].data(), i32[5].data(), i64[3].data()};
  }
  std::vector<std::int32_t> prompt, next;
  std::vector<std::vector<std::int32_t>> i32;
  std::vector<std::vector<std::int64_t>> i64;
  std::vector<std::vector<float>> f32;
  std::vector<std::uint8_t> u8;
};

inline void check_row(const ReplayBuffer& buffer, const World& w, Strategy strategy,
                      const Arrays& a, std::size_t i) {
  const auto begin = a.prompt.begin() + a.i64[0][i];
  const std::vector<std::int32_t> prompt(begin, a.prompt.begin() + a.i64[0][i + 1]);
  const auto next_begin = a.next.begin() + a.i64[1][i];
  const std::vector<std::int32_t> next(next_begin, a.next.begin() + a.i64[1][i + 1]);
  const int t = a.i32[5][i];
  const int m = a.i32[3][i];
  const std::int32_t goal = a.i32[4][i];
  // The candidate set's own first text says whose step this is; all else must agree with it.
  const std::vector<std::int32_t> own = buffer.text(buffer.candidate_set(a.i32[0][i])[0]);
  const int key = (own[0] - 30000) / 100;
  if ((own[0] - 30000) % 100 != t) complain("candidates or step", key, t);
  if (t < 0 || t >= length_of(key)) return complain("step out of its episode", key, t);
  const EpisodeInput e = w.episode(key);

  int steps = std::min(kStep, length_of(key) - t);
  double value = 0.0;
  bool terminal = false;
  const bool relabeled = a.u8[i] != 0;
  if (relabeled) {
    bool own_event = false;
    for (int s = 0; s < length_of(key); ++s) {
      if (!achieves(key, s) || goal != w.goal[key][s]) continue;
      own_event = own_event || strategy != Strategy::kFuture || s >= t;
      if (s >= t && s < t + steps) {
        steps = s - t + 1;
        terminal = true;
        value = std::pow(kGamma, s - t);
      }
    }
    if (terminated(key) && t + steps == length_of(key) && reward_of(key, t + steps - 1) <= 0.0F) {
      terminal = true;  // a failure
    }
    if (!own_event && strategy != Strategy::kRandom) complain("goal of another episode", key, t);
  } else {
    if (goal != w.own_goal[key]) complain("own goal", key, t);
    for (int k = 0; k < steps; ++k) value += std::pow(kGamma, k) * reward_of(key, t + k);
    terminal = terminated(key) && t + steps == length_of(key);
  }
  if (m != steps) return complain("m", key, t);
  if (a.f32[0][i] != static_cast<float>(value)) complain("return", key, t);
  if (a.f32[1][i] != static_cast<float>(terminal ? 0.0 : std::pow(kGamma, m))) {
    complain("discount", key, t);
  }
  if (a.i32[1][i] != w.set[key][t + m]) complain("next candidates", key, t);
  if (a.i32[2][i] != w.action(key, t)) complain("action", key, t);
  if (prompt != buffer.assemble(goal, e.observations, e.candidates, e.actions, t)) {
    complain("prompt", key, t);
  }
  if (next != buffer.assemble(goal, e.observations, e.candidates, e.actions, t + m)) {
    complain("next prompt", key, t);
  }
}

inline void sample_and_check(ReplayBuffer& buffer, const World& w, Strategy strategy,
                             std::size_t rows, Arrays& arrays, Plan& plan) {
  buffer.sample(rows, 0.5, plan, [&](const Plan& p) { return arrays(p); });
  for (std::size_t i = 0; i < rows; ++i) check_row(buffer, w, strategy, arrays, i);
  if (buffer.settings().sampling == Sampling::kPrioritised) {
    std::vector<double> priorities;
    for (std::size_t i = 0; i < rows; ++i) {
      if (!(arrays.f32[2][i] > 0.0F && arrays.f32[2][i] <= 1.0F)) complain("weight", -1, -1);
      priorities.push_back(static_cast<double>(mix64(static_cast<std::uint64_t>(i)) % 1000));
    }
    const std::vector<std::int64_t> keys(arrays.i64[3].begin(), arrays.i64[3].end() - 1);
    buffer.update_priorities(keys, priorities);
  }
  rows_checked.fetch_add(rows, std::memory_order_relaxed);
}

}  // namespace stress
