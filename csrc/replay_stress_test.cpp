// Stress of the replay buffer: producers, samplers, interning, templates, save and load at once.
//
// The capacity is tiny, so that places are reused all the time.
// Usage: replay_stress SECONDS [DELAY_PERMILLE] [FOLDER]; exit status 1 when a row was wrong.
#include "replay_stress.hpp"

namespace {

using namespace stress;

void run(Strategy strategy, Balance balance, Sampling sampling, double seconds,
         const std::string& folder) {
  Settings settings;
  settings.capacity = 24;  // two to twenty episodes
  settings.n_step = kStep;
  settings.gamma = kGamma;
  settings.strategy = strategy;
  settings.balance = balance;
  settings.sampling = sampling;
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
  struct Case {
    Strategy strategy;
    Balance balance;
    Sampling sampling;
  };
  const Case cases[] = {
      {Strategy::kFuture, Balance::kGoals, Sampling::kTransitions},
      {Strategy::kFuture, Balance::kEvents, Sampling::kTransitions},
      {Strategy::kFinal, Balance::kGoals, Sampling::kEpisodes},
      {Strategy::kEpisode, Balance::kEvents, Sampling::kEpisodes},
      {Strategy::kRandom, Balance::kEvents, Sampling::kPrioritised},
      {Strategy::kFuture, Balance::kEvents, Sampling::kPrioritised},
      {Strategy::kFuture, Balance::kGoals, Sampling::kPrioritised},
  };
  for (const Case& c : cases) {
    if (failures.load() > 0) break;
    run(c.strategy, c.balance, c.sampling, seconds / static_cast<double>(std::size(cases)), folder);
  }
  std::printf("rows %llu wrong %llu\n", static_cast<unsigned long long>(rows_checked.load()),
              static_cast<unsigned long long>(failures.load()));
  return failures.load() == 0 ? 0 : 1;
}
