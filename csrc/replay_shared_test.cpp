// Producers in other processes that die at any step of the shared log's protocol, and a sampler
// that checks every row while they do.
//
// Usage: replay_shared_test [DEATHS] [DEATHS_PER_MILLION_STEPS]; exit status 1 when a row was
// wrong, a producer ended otherwise than by being killed, or nothing new arrived any more.
#include <sys/wait.h>

#include "replay_stress.hpp"

namespace {

using namespace stress;

Settings settings() {
  Settings s;
  s.capacity = 3000;
  s.n_step = kStep;
  s.gamma = kGamma;
  s.strategy = Strategy::kFuture;
  s.balance = Balance::kGoals;
  s.her_ratio = 0.8;
  return s;
}

// Appends until it kills itself. Its texts are interned again, beside the other producers.
[[noreturn]] void produce(const SharedLog& parent, unsigned deadliness) {
  ReplayBuffer buffer(settings(), 1, parent.reattach());
  World world;
  world.intern(buffer);
  deaths_per_million = deadliness;
  for (std::uint64_t n = 0;; ++n) {
    const auto key =
        static_cast<int>(mix(n * 7919 + static_cast<std::uint64_t>(::getpid())) % kKeys);
    buffer.add_episode(world.episode(key));
    if (n % 16 == 0) buffer.intern_text({70000 + static_cast<std::int32_t>(mix(n) % 1000)});
    if (n % 256 == 0) std::this_thread::yield();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int deaths = argc > 1 ? std::atoi(argv[1]) : 100;
  const auto deadliness = static_cast<unsigned>(argc > 2 ? std::atoi(argv[2]) : 20);
  const std::string name = "stress-" + std::to_string(::getpid());
  ReplayBuffer buffer(settings(), 1,
                      SharedLog::create(name, settings(), 1, {1 << 20, std::int64_t{1} << 32}));
  World world;
  world.intern(buffer);
  buffer.add_episode(world.episode(7));

  constexpr std::size_t kChildren = 3;
  std::vector<pid_t> children;
  int died = 0;
  std::int64_t newest = 0;
  Arrays arrays(64);
  Plan plan;
  while (failures.load() == 0 && died < deaths) {
    while (children.size() < kChildren) {
      const pid_t child = ::fork();
      if (child == 0) produce(*buffer.log(), deadliness);
      if (child < 0) return 1;
      children.push_back(child);
    }
    for (int i = 0; i < 20; ++i) {
      sample_and_check(buffer, world, Strategy::kFuture, 64, arrays, plan);
      for (std::size_t k = 0; k < 64; ++k) newest = std::max(newest, arrays.i64[2][k]);
    }
    int status = 0;
    for (pid_t dead; (dead = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      std::erase(children, dead);
      ++died;
      if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        complain("end of a producer", -1, -1);
    }
  }
  for (const pid_t child : children) ::kill(child, SIGKILL);
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
  // Everyone is dead: their segments must be had again by the one who is left. What a producer
  // published, but did not live to ring the bell for, is heard with the next episode.
  buffer.add_episode(world.episode(0));
  const std::uint64_t before = buffer.stats().steps + buffer.stats().evicted_steps;
  std::uint64_t added = 0;
  for (int n = 0; n < 4000; ++n) {
    const EpisodeInput e = world.episode(n % kKeys);
    buffer.add_episode(e);
    added += e.actions.size();
    if (n % 10 == 0) buffer.steps();
  }
  if (buffer.stats().steps + buffer.stats().evicted_steps != before + added) {
    complain("episodes of the last producer", -1, -1);
  }
  if (newest < deaths) complain("nothing new arrived", -1, -1);
  std::printf("deaths %d episodes %lld rows %llu wrong %llu\n", died,
              static_cast<long long>(newest), static_cast<unsigned long long>(rows_checked.load()),
              static_cast<unsigned long long>(failures.load()));
  return failures.load() == 0 ? 0 : 1;
}
