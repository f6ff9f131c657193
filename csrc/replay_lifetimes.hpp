// Which texts and candidate sets are still needed, where they are freed: with capacity_bytes.
//
// A list remembers the last episode that used it: its position in the ring of episodes, or, when
// it is interned, that of the next one. Episodes go in the order of these positions, so that once
// the head has passed this one no stored episode uses the list: no references are counted. What
// was interned for an episode under way is safe until everything that is stored now is gone.
// What a template names is kept, and so are the texts of a set as long as the set is.
#pragma once

#include <functional>
#include <optional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "replay_episode.hpp"
#include "replay_template.hpp"

namespace sacglam::replay {

// All under both mutexes of the writers.
class Lifetimes {
 public:
  explicit Lifetimes(Tables& tables) : tables_(tables) {}

  void touch_text(std::int32_t id, std::uint64_t episode) { touch(texts_, id, episode); }
  void touch_set(std::int32_t id, std::uint64_t episode) {
    if (!touch(sets_, id, episode)) return;
    const Span set = tables_.sets[id];
    for (std::size_t i = 0; i < set.size; ++i) hold(set[i], episode);
  }
  void touch(const EpisodeInput& input, std::uint64_t episode) {
    touch_text(input.goal, episode);
    for (const std::int32_t id : input.observations) touch_text(id, episode);
    for (const std::int32_t id : input.achieved) touch_text(id, episode);
    for (const std::int32_t id : input.candidates) touch_set(id, episode);
  }
  void hold(const std::vector<Op>& ops, std::uint64_t episode) {
    for (const Op& op : ops) {
      if (op.kind == Op::kLiteral || op.kind == Op::kActions) hold(op.arg, episode);
      hold(op.body, episode);
    }
  }
  std::uint64_t last_use_of_text(std::int32_t id) const { return last_use(texts_, id); }
  std::uint64_t last_use_of_set(std::int32_t id) const { return last_use(sets_, id); }

  // Frees what no episode from `head` on uses. Readers who look at it keep the memory.
  void sweep(std::uint64_t head) {
    while (const auto id = next_dead(sets_, head)) {
      const std::vector<std::int32_t> members = tables_.sets[*id].ids();
      tables_.sets.release(*id);
      sets_.lives.erase(*id);
      for (const std::int32_t text : members) {
        Life& life = texts_.lives.at(text);
        if (--life.held == 0 && !life.queued) enqueue(texts_, text, life);
      }
    }
    while (const auto id = next_dead(texts_, head)) {
      tables_.texts.release(*id);
      texts_.lives.erase(*id);
    }
    tables_.texts.retire_released();
    tables_.sets.retire_released();
  }

 private:
  struct Life {
    std::uint64_t last_use = 0;
    std::uint32_t held = 0;  // by sets and templates
    bool queued = false;
  };
  using Due = std::pair<std::uint64_t, std::int32_t>;
  struct Lives {
    std::unordered_map<std::int32_t, Life> lives;
    // The earliest first; not later than the last use. A list is in it once, or not at all.
    std::priority_queue<Due, std::vector<Due>, std::greater<>> queue;
  };

  static std::uint64_t last_use(const Lives& all, std::int32_t id) {
    const auto found = all.lives.find(id);
    return found == all.lives.end() ? 0 : found->second.last_use;
  }
  static void enqueue(Lives& all, std::int32_t id, Life& life) {
    life.queued = true;
    all.queue.push({life.last_use, id});
  }
  // Whether it is new.
  static bool touch(Lives& all, std::int32_t id, std::uint64_t episode) {
    const auto [at, is_new] = all.lives.try_emplace(id);
    Life& life = at->second;
    life.last_use = std::max(life.last_use, episode);
    if (is_new) enqueue(all, id, life);
    return is_new;
  }
  void hold(std::int32_t text, std::uint64_t episode) {
    touch(texts_, text, episode);
    ++texts_.lives.at(text).held;
  }
  // The next one that nothing needs, taken out of the queue.
  static std::optional<std::int32_t> next_dead(Lives& all, std::uint64_t head) {
    while (!all.queue.empty() && all.queue.top().first < head) {
      const std::int32_t id = all.queue.top().second;
      all.queue.pop();
      Life& life = all.lives.at(id);
      life.queued = false;
      if (life.last_use >= head) {
        enqueue(all, id, life);
      } else if (life.held == 0) {
        return id;
      }
    }
    return std::nullopt;
  }

  Tables& tables_;
  Lives texts_, sets_;
};

}  // namespace sacglam::replay
