// Stress of the replay buffer: producers, samplers, interning, templates, save and load at once.
//
// Every episode is a function of its key, every text names the key and the step it belongs to, so
// that each sampled row can be recomputed in full: torn data, foreign goals, wrong neighbours,
// wrong returns are all visible. The capacity is tiny, so that places are reused all the time.
// Usage: replay_stress SECONDS [DELAY_PERMILLE] [FOLDER]; exit status 1 when a row was wrong.
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

// Between any two steps of the protocol, now and then: give up the processor, or sleep.
inline void pause_sometimes() {
  const unsigned permille = delay_permille.load(std::memory_order_relaxed);
  if (permille == 0) return;
  static thread_local std::uint64_t state =
      std::hash<std::thread::id>{}(std::this_thread::get_id());
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  const auto dice = static_cast<unsigned>(state >> 33) % 100000;
  if (dice < permille * 10) std::this_thread::yield();
  if (dice < permille / 10) std::this_thread::sleep_for(std::chrono::microseconds(200));
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
  static void fence_acquire() { std::atomic_thread_fence(std::memory_order_acquire); }
  static void fence_release() { std::atomic_thread_fence(std::memory_order_release); }
};

}  // namespace stress

#define SACGLAM_REPLAY_SYNC ::stress::DelaySync
#include "replay.hpp"

namespace {

using namespace sacglam::replay;

constexpr int kKeys = 48;
constexpr int kLongest = 9;
constexpr int kStep = 3;
constexpr double kGamma = 0.5;

int length_of(int key) { return 1 + key % kLongest; }
bool terminated(int key) { return key % 2 == 0; }
float reward_of(int key, int t) { return static_cast<float>((key * 7 + t * 3) % 11) - 5.0F; }
bool achieves(int key, int t) { return key % 5 != 0 && (key + t) % 3 == 0; }

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

std::atomic<std::uint64_t> rows_checked{0};
std::atomic<std::uint64_t> failures{0};

void complain(const char* what, int key, int t) {
  if (failures.fetch_add(1) < 10) std::fprintf(stderr, "WRONG %s: key %d, step %d\n", what, key, t);
}

struct Arrays {
  explicit Arrays(std::size_t rows)
      : i32(7, std::vector<std::int32_t>(rows)),
        i64(3, std::vector<std::int64_t>(rows + 1)),
        f32(3, std::vector<float>(rows)),
        u8(rows) {}
  BatchArrays operator()(const Plan& plan) {
    prompt.assign(plan.prompt_tokens, -1);
    next.assign(plan.next_tokens, -1);
    return {prompt.data(), i64[0].data(), i32[0].data(), next.data(),   i64[1].data(),
            i32[1].data(), i32[2].data(), f32[0].data(), f32[1].data(), f32[2].data(),
            i32[3].data(), i32[4].data(), u8.data(),     i64[2].data(), i32[5].data()};
  }
  std::vector<std::int32_t> prompt, next;
  std::vector<std::vector<std::int32_t>> i32;
  std::vector<std::vector<std::int64_t>> i64;
  std::vector<std::vector<float>> f32;
  std::vector<std::uint8_t> u8;
};

void check_row(const ReplayBuffer& buffer, const World& w, Strategy strategy, const Arrays& a,
               std::size_t i) {
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

void sample_and_check(ReplayBuffer& buffer, const World& w, Strategy strategy, std::size_t rows,
                      Arrays& arrays, Plan& plan) {
  buffer.sample(rows, plan, [&](const Plan& p) { return arrays(p); });
  for (std::size_t i = 0; i < rows; ++i) check_row(buffer, w, strategy, arrays, i);
  rows_checked.fetch_add(rows, std::memory_order_relaxed);
}

void run(Strategy strategy, Balance balance, double seconds, const std::string& folder) {
  Settings settings;
  settings.capacity = 24;  // two to twenty episodes
  settings.n_step = kStep;
  settings.gamma = kGamma;
  settings.strategy = strategy;
  settings.balance = balance;
  settings.her_ratio = 0.8;
  ReplayBuffer buffer(settings, 1);
  World world;
  world.intern(buffer);
  buffer.add_episode(world.episode(7));

  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned p = 0; p < 2; ++p) {
    threads.emplace_back([&, p] {
      std::uint64_t n = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        const auto key = static_cast<int>(mix64(n++ * 2 + p) % kKeys);
        buffer.add_episode(world.episode(key));
        if (n % 64 == 0) std::this_thread::yield();
      }
    });
  }
  for (int s = 0; s < 2; ++s) {
    threads.emplace_back([&] {
      Arrays arrays(32);
      Plan plan;
      while (!stop.load(std::memory_order_relaxed)) {
        sample_and_check(buffer, world, strategy, 32, arrays, plan);
      }
    });
  }
  threads.emplace_back([&] {
    const std::string path = folder + "/stress.replay";
    for (std::int32_t n = 0; !stop.load(std::memory_order_relaxed); ++n) {
      buffer.intern_text({90000 + n % 5000});
      if (n % 100 == 0) world.form(buffer);
      if (n % 400 == 399) {
        buffer.save(path);
        ReplayBuffer copy(settings, 2);
        copy.load(path);
        if (copy.stats().episodes > 0) {  // all of it may have been evicted while it was saved
          Arrays arrays(64);
          Plan plan;
          sample_and_check(copy, world, strategy, 64, arrays, plan);
        }
      }
      if (n % 4000 == 3999 && buffer.stats().episodes > 0) {
        ReplayBuffer probe(settings, 2);
        probe.load(path);
        if (probe.stats().episodes > 0) buffer.load(path);
      }
      std::this_thread::yield();
    }
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end && failures.load() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop.store(true);
  for (std::thread& t : threads) t.join();

  const Stats stats = buffer.stats();
  if (stats.steps > static_cast<std::uint64_t>(settings.capacity)) complain("capacity", -1, -1);
  std::printf("strategy %u balance %u: %llu episodes now, %llu steps evicted, %llu redrawn\n",
              static_cast<unsigned>(strategy), static_cast<unsigned>(balance),
              static_cast<unsigned long long>(stats.episodes),
              static_cast<unsigned long long>(stats.evicted_steps),
              static_cast<unsigned long long>(stats.redrawn));
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2.0;
  stress::delay_permille = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0;
  const std::string folder = argc > 3 ? argv[3] : "/tmp";
  const std::pair<Strategy, Balance> cases[] = {
      {Strategy::kFuture, Balance::kGoals},  {Strategy::kFuture, Balance::kEvents},
      {Strategy::kFinal, Balance::kGoals},   {Strategy::kEpisode, Balance::kEvents},
      {Strategy::kRandom, Balance::kEvents},
  };
  for (const auto& [strategy, balance] : cases) {
    if (failures.load() == 0) run(strategy, balance, seconds / 5, folder);
  }
  std::printf("rows %llu wrong %llu\n", static_cast<unsigned long long>(rows_checked.load()),
              static_cast<unsigned long long>(failures.load()));
  return failures.load() == 0 ? 0 : 1;
}
