// Stress of a buffer with a capacity in bytes: every text is new and freed soon, beside samplers.
//
// Tokens tell their episode and step, so that a text that was freed, or is another one's, shows;
// the address sanitizer sees the rest. Usage: replay_bytes_test SECONDS [UNUSED] [FOLDER]; exit
// status 1 when a row was wrong.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "replay.hpp"

namespace {

using namespace sacglam::replay;

constexpr int kLength = 6;
constexpr std::int32_t kGoal = 5, kAction = 6;
std::atomic<std::uint64_t> rows_checked{0}, failures{0}, too_slow{0};

void add(ReplayBuffer& buffer, std::int32_t key) {
  EpisodeInput e;
  e.goal = buffer.intern_text({kGoal, key});
  const std::int32_t set = buffer.intern_candidates(
      {buffer.intern_text({kAction, key}), buffer.intern_text({kAction, key, 0})});
  e.achieved_offsets.push_back(0);
  for (std::int32_t t = 0; t <= kLength; ++t) {
    e.observations.push_back(buffer.intern_text(
        std::vector<std::int32_t>(static_cast<std::size_t>(3 + key % 40), key * 8 + t)));
    e.candidates.push_back(set);
    if (t == kLength) break;
    e.actions.push_back(0);
    e.rewards.push_back(1.0F);
    e.achieved.push_back(e.goal);
    e.achieved_offsets.push_back(t + 1);
  }
  e.terminated = true;
  buffer.add_episode(e);
}

// [goal, key][observation, ...][action of set, ...]
bool sound(const std::int32_t* ids, std::size_t size, std::int32_t step, bool other_goal) {
  if (size < 5 || ids[0] != kGoal) return false;
  const std::int32_t key = ids[2] / 8;
  const auto length = static_cast<std::size_t>(3 + key % 40);
  if (size != 2 + length + 5 || (ids[1] != key && !other_goal)) return false;
  for (std::size_t i = 2; i < 2 + length; ++i) {
    if (ids[i] != key * 8 + step) return false;
  }
  return ids[2 + length] == kAction && ids[3 + length] == key;
}

void sample(ReplayBuffer& buffer, bool other_goal) {
  Plan plan;
  OwnedBatch batch;
  buffer.sample(24, 0.4, plan, [&](const Plan& p) { return batch.make_room(p); });
  const BatchArrays& a = batch.arrays;
  for (std::size_t i = 0; i < 24; ++i) {
    const auto size = static_cast<std::size_t>(a.prompt_offsets[i + 1] - a.prompt_offsets[i]);
    const auto next =
        static_cast<std::size_t>(a.next_prompt_offsets[i + 1] - a.next_prompt_offsets[i]);
    if (!sound(a.prompt_ids + a.prompt_offsets[i], size, a.step[i], other_goal) ||
        !sound(a.next_prompt_ids + a.next_prompt_offsets[i], next, a.step[i] + a.steps[i],
               other_goal)) {
      if (failures.fetch_add(1) < 10) {
        std::fprintf(stderr, "WRONG row: episode %lld\n", static_cast<long long>(a.episode[i]));
      }
    }
  }
  rows_checked.fetch_add(24);
}

void run(Strategy strategy, Sampling sampling, double seconds, const std::string& path) {
  Settings settings;
  settings.capacity = 1000;
  settings.capacity_bytes = 200000;
  settings.n_step = 3;
  settings.strategy = strategy;
  settings.her_ratio = 0.8;
  settings.sampling = sampling;
  ReplayBuffer buffer(settings, 1);
  buffer.set_template({{Op::kGoal}, {Op::kObservation}, {Op::kActions, buffer.intern_text({})}});
  add(buffer, 0);
  std::atomic<bool> stop{false};
  std::atomic<std::int32_t> next{1};
  std::vector<std::thread> threads;
  for (int p = 0; p < 2; ++p) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        try {
          add(buffer, next.fetch_add(1));
        } catch (const ReplayFault&) {  // stopped for so long that its texts were freed: as said
          too_slow.fetch_add(1);
        }
      }
    });
    threads.emplace_back([&] {
      while (!stop.load()) sample(buffer, strategy == Strategy::kRandom);
    });
  }
  threads.emplace_back([&] {
    while (!stop.load()) {
      buffer.save(path);
      ReplayBuffer copy(settings, 2);
      copy.load(path);
      if (copy.stats().episodes > 0) sample(copy, strategy == Strategy::kRandom);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop.store(true);
  for (std::thread& t : threads) t.join();
  const Stats stats = buffer.stats();
  if (stats.content_bytes > 200000 || stats.bytes > 800000) {
    failures.fetch_add(1);
    std::fprintf(stderr, "WRONG bytes: %llu, %llu of content\n",
                 static_cast<unsigned long long>(stats.bytes),
                 static_cast<unsigned long long>(stats.content_bytes));
  }
  std::printf("strategy %u sampling %u: %d episodes, %llu now, %llu bytes, %llu redrawn\n",
              static_cast<unsigned>(strategy), static_cast<unsigned>(sampling), next.load(),
              static_cast<unsigned long long>(stats.episodes),
              static_cast<unsigned long long>(stats.bytes),
              static_cast<unsigned long long>(stats.redrawn));
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 3.0;
  const std::string path = std::string(argc > 3 ? argv[3] : "/tmp") + "/bytes.replay";
  run(Strategy::kFuture, Sampling::kTransitions, seconds / 3, path);
  run(Strategy::kRandom, Sampling::kEpisodes, seconds / 3, path);
  run(Strategy::kEpisode, Sampling::kPrioritised, seconds / 3, path);
  std::printf("%llu too slow, rows %llu wrong %llu\n",
              static_cast<unsigned long long>(too_slow.load()),
              static_cast<unsigned long long>(rows_checked.load()),
              static_cast<unsigned long long>(failures.load()));
  return failures.load() == 0 ? 0 : 1;
}
