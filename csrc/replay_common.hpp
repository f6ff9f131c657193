// What every part of the replay buffer shares: faults, settings, the counter-based generator.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sacglam::replay {

// Data that the buffer cannot store or sample (Python: ReplayError).
struct ReplayFault : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A file that cannot be written or is not a sound checkpoint (Python: CheckpointError).
struct CheckpointFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Strategy : std::uint32_t { kNone, kFuture, kFinal, kEpisode, kRandom };
enum class Balance : std::uint32_t { kEvents, kGoals };
enum class Sampling : std::uint32_t { kTransitions, kEpisodes, kPrioritised };
// What becomes of an episode that is longer than the buffer, or than a shared buffer's segment.
enum class LongEpisodes : std::uint32_t { kRefuse, kSplit };

struct Settings {
  // Of prioritised sampling: the sum of all priorities stays below 2^63.
  static constexpr std::int64_t kMostPrioritised = std::int64_t{1} << 24;

  std::int64_t capacity = 0;        // transitions
  std::int64_t capacity_bytes = 0;  // of them and their texts, which are freed then; 0: no limit
  std::int32_t n_step = 1;
  double gamma = 1.0;
  Strategy strategy = Strategy::kNone;
  double her_ratio = 0.0;
  double her_random = 0.0;  // share of the relabeled rows that are drawn as by kRandom
  Balance balance = Balance::kEvents;
  float her_reward = 1.0F;
  Sampling sampling = Sampling::kTransitions;
  LongEpisodes long_episodes = LongEpisodes::kRefuse;
  double priority_exponent = 0.6;  // alpha of Schaul et al.
  double priority_beta = 0.4;
  double priority_epsilon = 1e-6;

  bool are_sound() const {
    const auto within = [](double value, double high) { return value >= 0.0 && value <= high; };
    return capacity >= 1 && capacity <= std::int64_t{1} << 40 && capacity_bytes >= 0 &&
           capacity_bytes <= std::int64_t{1} << 50 && n_step >= 1 && within(gamma, 1.0) &&
           strategy <= Strategy::kRandom && within(her_ratio, 1.0) && within(her_random, 1.0) &&
           balance <= Balance::kGoals && std::isfinite(her_reward) &&
           sampling <= Sampling::kPrioritised && long_episodes <= LongEpisodes::kSplit &&
           within(priority_exponent, 10.0) && within(priority_beta, 10.0) &&
           within(priority_epsilon, 1e30) &&
           (sampling != Sampling::kPrioritised || capacity <= kMostPrioritised);
  }
};

inline std::uint64_t mix64(std::uint64_t x) {  // finaliser of splitmix64 (Steele et al. 2014)
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

// Splitmix64 started at a hash of (seed, batch, row): any row of any batch can be drawn again
// without drawing those before it, in any thread and by the Python oracle of the tests.
class CounterRng {
 public:
  // The draws that concern a whole batch use this row.
  static constexpr std::uint64_t kBatchRow = ~std::uint64_t{0};

  CounterRng(std::uint64_t seed, std::uint64_t batch, std::uint64_t row)
      : state_(mix64(mix64(mix64(seed + kGolden) ^ (batch + kGolden)) ^ (row + kGolden))) {}

  std::uint64_t next() {
    state_ += kGolden;
    return mix64(state_);
  }
  // Uniform on [0, n): the high word of a product; the bias is below n / 2^64.
  std::uint64_t below(std::uint64_t n) {
    return static_cast<std::uint64_t>((static_cast<Wide>(next()) * n) >> 64);
  }
  // Uniform on [0, 1), 53 bits.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  __extension__ using Wide = unsigned __int128;
  static constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;
  std::uint64_t state_;
};

}  // namespace sacglam::replay
