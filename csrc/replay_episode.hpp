// What an episode looks like when it is handed in, and when it is stored.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "replay_tables.hpp"

namespace sacglam::replay {

// One episode as it is handed in: T transitions, T + 1 states.
struct EpisodeInput {
  std::int32_t goal = -1;
  std::vector<std::int32_t> observations;      // [T + 1] text ids
  std::vector<std::int32_t> candidates;        // [T + 1] set ids
  std::vector<std::int32_t> actions;           // [T] index into the step's set
  std::vector<float> rewards;                  // [T]
  std::vector<std::int64_t> achieved_offsets;  // [T + 1]
  std::vector<std::int32_t> achieved;          // [achieved_offsets[T]] text ids
  bool terminated = false;
  bool truncated = false;

  void check(const Tables& tables, std::int64_t capacity) const;
  // Its steps [begin, end) as an episode; cut off, which is a truncation, unless they are the last.
  EpisodeInput piece(std::size_t begin, std::size_t end) const;
};

// The stored records are whole 64-bit words: rings move them word by word.

struct Row {
  std::int32_t observation;
  std::int32_t candidates;
  std::int32_t action;
  float reward;
};

// Readers pick pairs of fields out of these two by word: see StoredSteps.
static_assert(offsetof(Row, observation) == 0 && offsetof(Row, candidates) == 4 &&
              offsetof(Row, action) == 8 && offsetof(Row, reward) == 12);

// Leads from a drawn transition to its episode (the low half of its id: see
// Contents::episode_of()) and to the first of the episode's events at or after it.
struct Link {
  static constexpr std::uint64_t kMostEpisodes = std::uint64_t{1} << 31;  // no two are alike

  std::uint32_t episode;
  std::uint32_t first_event;  // counted from the episode's first
};

struct Event {  // `goal` was achieved by transition `step` of the episode that it belongs to
  std::int32_t goal;
  std::int32_t step;
};

static_assert(offsetof(Event, goal) == 0 && offsetof(Event, step) == 4);

struct Achievement {  // of one goal
  std::uint64_t episode;
  std::int32_t step;
  std::int32_t unused;
};

struct Episode {
  std::uint64_t label;  // the id that the world knows it by; its position in the ring is private
  std::uint64_t row_begin;
  std::uint64_t event_begin;
  std::uint64_t her_begin;
  std::int32_t length;
  std::int32_t goal;
  std::int32_t last_observation;
  std::int32_t last_candidates;
  std::uint32_t events;
  std::uint32_t final_events;  // those of the last step that achieved anything
  std::uint32_t her_steps;     // entries in the ring of transitions that can be relabeled
  std::uint8_t terminated;
  std::uint8_t truncated;
  std::uint16_t unused;
};

inline EpisodeInput EpisodeInput::piece(std::size_t begin, std::size_t end) const {
  const auto slice = [](const auto& all, std::size_t first, std::size_t last) {
    return std::decay_t<decltype(all)>(all.begin() + static_cast<std::ptrdiff_t>(first),
                                       all.begin() + static_cast<std::ptrdiff_t>(last));
  };
  EpisodeInput out;
  const bool last = end == actions.size();
  out.goal = goal;
  out.observations = slice(observations, begin, end + 1);
  out.candidates = slice(candidates, begin, end + 1);
  out.actions = slice(actions, begin, end);
  out.rewards = slice(rewards, begin, end);
  out.achieved_offsets = slice(achieved_offsets, begin, end + 1);
  for (std::int64_t& offset : out.achieved_offsets) offset -= achieved_offsets[begin];
  out.achieved = slice(achieved, static_cast<std::size_t>(achieved_offsets[begin]),
                       static_cast<std::size_t>(achieved_offsets[end]));
  out.terminated = last && terminated;
  out.truncated = last ? truncated : true;
  return out;
}

inline void EpisodeInput::check(const Tables& tables, std::int64_t capacity) const {
  const std::size_t length = actions.size();
  const auto require_size = [&](const char* name, std::size_t got, std::size_t need) {
    if (got != need) {
      throw ReplayFault(std::string(name) + " has " + std::to_string(got) + " entries, but " +
                        std::to_string(length) + " actions need " + std::to_string(need));
    }
  };
  if (length == 0) throw ReplayFault("an episode needs at least one transition: actions is empty");
  if (length > static_cast<std::size_t>(capacity)) {
    throw ReplayFault("an episode of " + std::to_string(length) +
                      " transitions does not fit a buffer of capacity " + std::to_string(capacity) +
                      "; raise the capacity, shorten episodes, or have them split by "
                      "long_episodes=\"split\"");
  }
  require_size("observations", observations.size(), length + 1);
  require_size("candidates", candidates.size(), length + 1);
  require_size("rewards", rewards.size(), length);
  require_size("achieved_offsets", achieved_offsets.size(), length + 1);
  tables.require_text(goal, "goal");
  for (const std::int32_t id : observations) tables.require_text(id, "observations");
  for (const std::int32_t id : candidates) tables.require_set(id, "candidates");
  for (const std::int32_t id : achieved) tables.require_text(id, "achieved");
  for (std::size_t t = 0; t < length; ++t) {
    const std::size_t choices = tables.sets[candidates[t]].size;
    if (actions[t] < 0 || static_cast<std::size_t>(actions[t]) >= choices) {
      throw ReplayFault("actions[" + std::to_string(t) + "] is " + std::to_string(actions[t]) +
                        ", but that step has " + std::to_string(choices) + " candidates");
    }
    if (!std::isfinite(rewards[t])) {
      throw ReplayFault("rewards[" + std::to_string(t) + "] is not finite");
    }
    if (achieved_offsets[t] > achieved_offsets[t + 1]) {
      throw ReplayFault("achieved_offsets must not decrease (position " + std::to_string(t + 1) +
                        ")");
    }
  }
  if (achieved_offsets[0] != 0 ||
      achieved_offsets[length] != static_cast<std::int64_t>(achieved.size())) {
    throw ReplayFault("achieved_offsets must start at 0 and end at the length of achieved (" +
                      std::to_string(achieved.size()) + ")");
  }
}

}  // namespace sacglam::replay
