// Whole episodes in flat first-in-first-out rings, and the indexes that hindsight draws from.
#pragma once

#include <cmath>
#include <vector>

#include "replay_tables.hpp"

namespace sacglam::replay {

// A ring that grows, addressed by positions that count up forever.
template <class T>
class Fifo {
 public:
  void restart(std::uint64_t position) { head_ = tail_ = position; }
  void push(const T& value) {
    if (size() == data_.size()) grow();
    data_[tail_++ & (data_.size() - 1)] = value;
  }
  void pop() { ++head_; }
  const T& operator[](std::uint64_t position) const { return data_[position & (data_.size() - 1)]; }
  std::uint64_t head() const { return head_; }
  std::uint64_t tail() const { return tail_; }
  std::uint64_t size() const { return tail_ - head_; }
  std::size_t bytes() const { return data_.capacity() * sizeof(T); }

 private:
  void grow() {
    std::vector<T> bigger(std::max<std::size_t>(4, data_.size() * 2));
    for (std::uint64_t i = head_; i != tail_; ++i) bigger[i & (bigger.size() - 1)] = (*this)[i];
    data_ = std::move(bigger);
  }
  std::vector<T> data_;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
};

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
};

struct Row {
  std::int32_t observation;
  std::int32_t candidates;
  std::int32_t action;
  float reward;
  std::int64_t episode;
};

struct Event {  // `goal` was achieved by transition `step` of `episode`
  std::int32_t goal;
  std::int32_t step;
  std::int64_t episode;
};

struct Episode {
  std::uint64_t row_begin;
  std::uint64_t event_begin;
  std::uint64_t her_begin;
  std::int32_t length;
  std::int32_t goal;
  std::int32_t last_observation;
  std::int32_t last_candidates;
  std::uint32_t events;
  std::uint32_t final_events;  // those of the last step that achieved anything
  std::uint32_t her_steps;     // steps 0 .. her_steps-1 can be relabeled
  std::uint8_t terminated;
  std::uint8_t truncated;
};

class Store {
 public:
  Store(std::int64_t capacity, Strategy strategy) : capacity_(capacity), strategy_(strategy) {}

  // `input` has passed check(); evicts the oldest episodes first; returns the episode's id.
  std::int64_t add(const EpisodeInput& input);

  const Fifo<Row>& rows() const { return rows_; }
  const Fifo<Event>& events() const { return events_; }
  const Fifo<Episode>& episodes() const { return episodes_; }
  // One entry (an episode id) for each transition that the strategy can relabel.
  const Fifo<std::int64_t>& her_rows() const { return her_rows_; }
  // The goals with at least one eligible event, in an order that depends on history alone.
  const std::vector<std::int32_t>& active_goals() const { return active_; }
  // Positions in events() at which `goal` was achieved.
  const Fifo<std::uint64_t>& events_of(std::int32_t goal) const {
    return goals_[static_cast<std::size_t>(slot_of_[static_cast<std::size_t>(goal)])].positions;
  }
  const Episode& episode(std::int64_t id) const {
    return episodes_[static_cast<std::uint64_t>(id)];
  }
  std::uint64_t evicted_steps() const { return evicted_steps_; }
  std::size_t bytes() const;

  // For loading: ids continue where they were, the order of active goals is as it was.
  void restart(std::int64_t first_episode) {
    episodes_.restart(static_cast<std::uint64_t>(first_episode));
  }
  void set_evicted_steps(std::uint64_t steps) { evicted_steps_ = steps; }
  bool reorder_active_goals(const std::vector<std::int32_t>& order);

 private:
  struct GoalIndex {
    std::int32_t goal;
    std::int32_t rank;  // place in active_, -1 when it has no event
    Fifo<std::uint64_t> positions;
  };

  void evict_oldest();
  GoalIndex& index_of(std::int32_t goal);
  // `final` draws from an episode's last achievements alone, the others from all of them.
  std::uint64_t first_eligible(const Episode& e) const {
    const std::uint64_t end = e.event_begin + e.events;
    return strategy_ == Strategy::kFinal ? end - e.final_events : e.event_begin;
  }

  std::int64_t capacity_;
  Strategy strategy_;
  Fifo<Row> rows_;
  Fifo<Event> events_;
  Fifo<Episode> episodes_;
  Fifo<std::int64_t> her_rows_;
  std::vector<std::int32_t> slot_of_;  // text id -> place in goals_, -1 = never achieved
  std::vector<GoalIndex> goals_;
  std::vector<std::int32_t> active_;
  std::uint64_t evicted_steps_ = 0;
};

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
                      "; raise the capacity or shorten episodes");
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

inline std::int64_t Store::add(const EpisodeInput& input) {
  const std::size_t length = input.actions.size();
  while (rows_.size() + length > static_cast<std::uint64_t>(capacity_)) evict_oldest();

  const auto id = static_cast<std::int64_t>(episodes_.tail());
  Episode e{};
  e.row_begin = rows_.tail();
  e.event_begin = events_.tail();
  e.her_begin = her_rows_.tail();
  e.length = static_cast<std::int32_t>(length);
  e.goal = input.goal;
  e.last_observation = input.observations[length];
  e.last_candidates = input.candidates[length];
  e.terminated = input.terminated;
  e.truncated = input.truncated;

  std::int32_t last_step = -1;
  for (std::size_t t = 0; t < length; ++t) {
    rows_.push(
        {input.observations[t], input.candidates[t], input.actions[t], input.rewards[t], id});
    const std::uint64_t step_begin = events_.tail();
    for (auto i = input.achieved_offsets[t]; i < input.achieved_offsets[t + 1]; ++i) {
      const std::int32_t goal = input.achieved[static_cast<std::size_t>(i)];
      bool seen = false;  // a step's achievements are a set: a repeated goal counts once
      for (std::uint64_t p = step_begin; p < events_.tail() && !seen; ++p) {
        seen = events_[p].goal == goal;
      }
      if (seen) continue;
      const auto step = static_cast<std::int32_t>(t);
      if (step != last_step) e.final_events = 0;
      last_step = step;
      ++e.final_events;
      events_.push({goal, step, id});
    }
  }
  e.events = static_cast<std::uint32_t>(events_.tail() - e.event_begin);
  if (e.events > 0 && strategy_ != Strategy::kNone) {
    e.her_steps = strategy_ == Strategy::kFuture ? static_cast<std::uint32_t>(last_step + 1)
                                                 : static_cast<std::uint32_t>(length);
  }
  if (strategy_ == Strategy::kRandom) e.her_steps = 0;  // it draws from all transitions
  for (std::uint32_t i = 0; i < e.her_steps; ++i) her_rows_.push(id);
  for (std::uint64_t p = first_eligible(e); p < e.event_begin + e.events; ++p) {
    GoalIndex& index = index_of(events_[p].goal);
    if (index.rank < 0) {
      index.rank = static_cast<std::int32_t>(active_.size());
      active_.push_back(index.goal);
    }
    index.positions.push(p);
  }
  episodes_.push(e);
  return id;
}

inline void Store::evict_oldest() {
  const Episode e = episodes_[episodes_.head()];
  for (std::uint64_t p = first_eligible(e); p < e.event_begin + e.events; ++p) {
    GoalIndex& index = index_of(events_[p].goal);
    index.positions.pop();
    if (index.positions.size() == 0) {  // the last active goal takes its place
      active_[static_cast<std::size_t>(index.rank)] = active_.back();
      index_of(active_.back()).rank = index.rank;
      active_.pop_back();
      index.rank = -1;
    }
  }
  for (std::uint32_t i = 0; i < e.events; ++i) events_.pop();
  for (std::uint32_t i = 0; i < e.her_steps; ++i) her_rows_.pop();
  for (std::int32_t i = 0; i < e.length; ++i) rows_.pop();
  episodes_.pop();
  evicted_steps_ += static_cast<std::uint64_t>(e.length);
}

inline Store::GoalIndex& Store::index_of(std::int32_t goal) {
  const auto id = static_cast<std::size_t>(goal);
  if (id >= slot_of_.size()) slot_of_.resize(std::max(id + 1, slot_of_.size() * 2), -1);
  if (slot_of_[id] < 0) {
    slot_of_[id] = static_cast<std::int32_t>(goals_.size());
    goals_.push_back({goal, -1, {}});
  }
  return goals_[static_cast<std::size_t>(slot_of_[id])];
}

inline bool Store::reorder_active_goals(const std::vector<std::int32_t>& order) {
  std::vector<std::int32_t> ours = active_;
  std::vector<std::int32_t> theirs = order;
  std::sort(ours.begin(), ours.end());
  std::sort(theirs.begin(), theirs.end());
  if (ours != theirs) return false;
  active_ = order;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    index_of(active_[i]).rank = static_cast<std::int32_t>(i);
  }
  return true;
}

inline std::size_t Store::bytes() const {
  std::size_t total = rows_.bytes() + events_.bytes() + episodes_.bytes() + her_rows_.bytes() +
                      slot_of_.capacity() * sizeof(std::int32_t) +
                      goals_.capacity() * sizeof(GoalIndex) +
                      active_.capacity() * sizeof(std::int32_t);
  for (const GoalIndex& g : goals_) total += g.positions.bytes();
  return total;
}

}  // namespace sacglam::replay
