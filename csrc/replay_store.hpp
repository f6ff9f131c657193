// Whole episodes in first-in-first-out rings, and the indexes that hindsight draws from.
//
// One writer at a time, any number of readers without a lock. A commit first writes everything
// where no reader looks, then publishes the tails, then evicts what is over capacity by advancing
// the heads: the store is never empty again once it held something, and a writer that stops at
// any instruction leaves every reader with sound data.
#pragma once

#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "replay_episode.hpp"
#include "replay_priorities.hpp"

namespace sacglam::replay {

// Where one goal was achieved. Never freed before the store.
struct GoalIndex {
  GoalIndex(std::int32_t text, Reclaimer& reclaimer) : goal(text), achievements(reclaimer) {}
  const std::int32_t goal;
  Ring<Achievement> achievements;
  std::int32_t rank = -1;  // the writer's: place among the active goals, -1 = not among them
};

class Store {
 public:
  Store(const Settings& settings, Reclaimer& reclaimer)
      : capacity_(static_cast<std::uint64_t>(settings.capacity)),
        strategy_(settings.strategy),
        by_episode_(settings.sampling == Sampling::kEpisodes),
        frees_(settings.capacity_bytes > 0),
        reclaimer_(reclaimer),
        rows_(reclaimer),
        links_(reclaimer),
        events_(reclaimer),
        episodes_(reclaimer),
        her_rows_(reclaimer) {
    grow_active();
    if (settings.sampling == Sampling::kPrioritised) {
      const bool by_event = settings.balance == Balance::kEvents && strategy_ != Strategy::kNone &&
                            strategy_ != Strategy::kRandom;
      priorities_ = std::make_unique<Priorities>(settings.priority_exponent,
                                                 settings.priority_epsilon, by_event, reclaimer);
    }
  }

  // ---- the writer (under the owner's lock)

  // `input` has passed check(); evicts the oldest episodes; returns the episode's label: the one
  // given (from a shared log or a checkpoint), or the next of its own.
  std::uint64_t add(const EpisodeInput& input, std::optional<std::uint64_t> label = std::nullopt);
  // For loading: positions and labels continue where they were, the order of active goals is as
  // it was.
  void restart(std::uint64_t first_episode, std::uint64_t first_row) {
    episodes_.restart(first_episode);
    rows_.restart(first_row);
    links_.restart(first_row);
    next_label_ = first_episode;
    evicted_steps_ = first_row;
  }
  // Null unless sampling is prioritised. Changed under the owner's lock.
  Priorities* priorities() { return priorities_.get(); }
  std::uint64_t next_label() const { return next_label_; }
  void set_next_label(std::uint64_t label) { next_label_ = label; }
  bool reorder_active_goals(const std::vector<std::int32_t>& order);
  std::vector<std::int32_t> active_order() const;
  std::uint64_t evicted_steps() const { return evicted_steps_; }
  std::size_t bytes() const;
  // What the stored episodes take, whatever room there is beside them.
  std::size_t content_bytes() const {
    const auto steps = static_cast<std::size_t>(rows_.next() - rows_.head());
    const auto events = static_cast<std::size_t>(events_.next() - events_.head());
    return bytes_of(steps, events) +
           static_cast<std::size_t>(episodes_.next() - episodes_.head()) * sizeof(Episode);
  }
  std::size_t bytes_of(std::size_t steps, std::size_t events) const {
    const std::size_t ranks = priorities_ ? 19 : 0;
    return steps * (sizeof(Row) + 2 * sizeof(Link) + ranks) +
           events * (sizeof(Event) + sizeof(Achievement));
  }
  // False when there is but one episode: the store does not become empty.
  bool evict() {
    if (episodes_.next() - episodes_.head() < 2) return false;
    evict_oldest();
    return true;
  }

  // ---- readers (inside a Reclaimer::Guard)

  const Ring<Row>& rows() const { return rows_; }
  // One for each row. Apart: few rows of a batch are drawn by it, and all of them read rows.
  const Ring<Link>& links() const { return links_; }
  const Ring<Event>& events() const { return events_; }
  const Ring<Episode>& episodes() const { return episodes_; }
  // One for each transition that the strategy can relabel; where episodes are sampled, for each
  // episode that has such a transition.
  const Ring<Link>& her_rows() const { return her_rows_; }
  const Priorities* priorities() const { return priorities_.get(); }
  // The goals with at least one eligible event, in an order that depends on history alone.
  // While a writer retires a goal a reader may find the last one twice, or a goal without events.
  std::size_t active_goals() const { return active_count_.load(std::memory_order_acquire); }
  const GoalIndex& active_goal(std::size_t rank) const {
    return *active_.load(std::memory_order_acquire)[rank].load(std::memory_order_acquire);
  }

 private:
  using ActiveSlot = std::atomic<GoalIndex*>;

  void write(const EpisodeInput& input, std::uint64_t id, std::uint64_t label);
  void prioritise(const Episode& e);
  void evict_oldest();
  std::uint32_t her_entries(const Episode& e) const {
    return by_episode_ ? std::min(e.her_steps, 1U) : e.her_steps;
  }
  GoalIndex& index_of(std::int32_t goal);
  void activate(GoalIndex& index);
  void deactivate(GoalIndex& index);
  void grow_active();
  // `final` draws from an episode's last achievements alone, the others from all of them.
  std::uint64_t first_eligible(const Episode& e) const {
    const std::uint64_t end = e.event_begin + e.events;
    return strategy_ == Strategy::kFinal ? end - e.final_events : e.event_begin;
  }

  const std::uint64_t capacity_;
  const Strategy strategy_;
  const bool by_episode_;
  const bool frees_;  // memory that is kept about goals, once their last achievement is gone
  Reclaimer& reclaimer_;
  Ring<Row> rows_;
  Ring<Link> links_;
  Ring<Event> events_;
  Ring<Episode> episodes_;
  Ring<Link> her_rows_;
  std::unique_ptr<Priorities> priorities_;
  std::shared_ptr<ActiveSlot[]> owned_active_;
  std::size_t active_room_ = 0;
  std::atomic<ActiveSlot*> active_{nullptr};
  std::atomic<std::size_t> active_count_{0};
  std::vector<std::int32_t> slot_of_;  // text id -> place in goals_, -1 = never achieved
  std::vector<std::unique_ptr<GoalIndex>> goals_;
  std::unordered_map<std::int32_t, std::shared_ptr<GoalIndex>>
      goals_by_text_;                // instead, with frees_
  std::vector<GoalIndex*> touched_;  // scratch: goals whose lists grew in this commit
  std::uint64_t evicted_steps_ = 0;
  std::uint64_t next_label_ = 0;
};

// A moment's contents, for a reader who looks at much of them. The episodes come first: all that
// these refer to is in what is looked at later. (What is newer than they are counts as not there.)
struct Contents {
  explicit Contents(const Store& store)
      : episodes(store.episodes()),
        events(store.events()),
        rows(store.rows()),
        links(store.links()),
        her_rows(store.her_rows()) {}
  Ring<Episode>::View episodes;
  Ring<Event>::View events;
  Ring<Row>::View rows;
  Ring<Link>::View links;
  Ring<Link>::View her_rows;

  // One that has gone by this moment becomes one that is not there.
  std::uint64_t episode_of(const Link& link) const {
    const std::uint64_t head = episodes.head();
    return head + static_cast<std::uint32_t>(link.episode - static_cast<std::uint32_t>(head));
  }
};

inline std::uint64_t Store::add(const EpisodeInput& input, std::optional<std::uint64_t> given) {
  const std::uint64_t id = episodes_.next();
  const std::uint64_t label = given.value_or(next_label_);
  touched_.clear();
  try {
    write(input, id, label);
  } catch (...) {  // out of memory: nothing was published, nothing stays
    rows_.abandon();
    links_.abandon();
    events_.abandon();
    episodes_.abandon();
    her_rows_.abandon();
    for (GoalIndex* index : touched_) index->achievements.abandon();
    throw;
  }

  // Every word is in place: publish. A reader that acquires any of these tails sees all of it.
  episodes_.publish();
  events_.publish();
  rows_.publish();
  links_.publish();
  her_rows_.publish();
  for (GoalIndex* index : touched_) {
    index->achievements.publish();
    if (index->rank < 0) activate(*index);
  }
  if (priorities_) prioritise(episodes_.peek(id));
  while (rows_.next() - rows_.head() > capacity_ ||
         episodes_.next() - episodes_.head() > Link::kMostEpisodes) {
    evict_oldest();
  }
  reclaimer_.collect();
  next_label_ = std::max(next_label_, label + 1);
  return label;
}

// Everything that can fail.
inline void Store::write(const EpisodeInput& input, std::uint64_t id, std::uint64_t label) {
  const std::size_t length = input.actions.size();
  Episode e{};
  e.label = label;
  e.row_begin = rows_.next();
  e.event_begin = events_.next();
  e.her_begin = her_rows_.next();
  e.length = static_cast<std::int32_t>(length);
  e.goal = input.goal;
  e.last_observation = input.observations[length];
  e.last_candidates = input.candidates[length];
  e.terminated = input.terminated;
  e.truncated = input.truncated;

  // The heads were advanced by earlier commits; their places may be written from here on.
  Ring<Row>::begin_writing();
  std::int32_t last_step = -1;
  for (std::size_t t = 0; t < length; ++t) {
    rows_.push({input.observations[t], input.candidates[t], input.actions[t], input.rewards[t]});
    links_.push({static_cast<std::uint32_t>(id),
                 static_cast<std::uint32_t>(events_.next() - e.event_begin)});
    const auto begin = static_cast<std::size_t>(input.achieved_offsets[t]);
    const auto end = static_cast<std::size_t>(input.achieved_offsets[t + 1]);
    for (std::size_t i = begin; i < end; ++i) {
      const std::int32_t goal = input.achieved[i];
      // A step's achievements are a set: a repeated goal counts once.
      const std::int32_t* first = input.achieved.data() + begin;
      if (std::find(first, first + (i - begin), goal) != first + (i - begin)) continue;
      const auto step = static_cast<std::int32_t>(t);
      if (step != last_step) e.final_events = 0;
      last_step = step;
      ++e.final_events;
      events_.push({goal, step});
    }
  }
  e.events = static_cast<std::uint32_t>(events_.next() - e.event_begin);
  // `random` draws from all transitions, `none` from none.
  if (strategy_ == Strategy::kFuture) e.her_steps = static_cast<std::uint32_t>(last_step + 1);
  if (strategy_ == Strategy::kFinal || strategy_ == Strategy::kEpisode) {
    e.her_steps = e.events > 0 ? static_cast<std::uint32_t>(length) : 0;
  }
  for (std::uint32_t i = 0; i < her_entries(e); ++i) her_rows_.push(links_.peek(e.row_begin + i));
  for (std::uint64_t p = first_eligible(e); p < e.event_begin + e.events; ++p) {
    const Event event = events_.peek(p);
    GoalIndex& index = index_of(event.goal);
    touched_.push_back(&index);
    index.achievements.push({id, event.step, 0});
  }
  episodes_.push(e);
  const std::size_t goals = active_count_.load(std::memory_order_relaxed) + touched_.size();
  while (goals > active_room_) grow_active();
  if (priorities_) priorities_->reserve(rows_.head(), rows_.tail(), rows_.next());
}

// After the rows are published: what is drawn from is there.
inline void Store::prioritise(const Episode& e) {
  for (std::uint32_t t = 0; t < static_cast<std::uint32_t>(e.length); ++t) {
    priorities_->add(e.row_begin + t, t < e.her_steps);
  }
}

// The episode's own head goes first: whoever still reads any part of it will see that it is gone
// (see the order W1 to R4 in replay_ring.hpp; W2 is begin_writing() of a later commit).
inline void Store::evict_oldest() {
  const std::uint64_t id = episodes_.head();
  const Episode e = episodes_.peek(id);
  const std::uint64_t event_end = e.event_begin + e.events;
  episodes_.advance_head(id + 1);
  rows_.advance_head(e.row_begin + static_cast<std::uint64_t>(e.length));
  links_.advance_head(e.row_begin + static_cast<std::uint64_t>(e.length));
  her_rows_.advance_head(e.her_begin + her_entries(e));
  for (std::uint32_t t = 0; priorities_ && t < static_cast<std::uint32_t>(e.length); ++t) {
    priorities_->remove(e.row_begin + t, t < e.her_steps);
  }
  for (std::uint64_t p = first_eligible(e); p < event_end; ++p) {
    GoalIndex& index = index_of(events_.peek(p).goal);
    const std::uint64_t next = index.achievements.head() + 1;
    index.achievements.advance_head(next);
    if (next == index.achievements.next()) deactivate(index);
  }
  events_.advance_head(event_end);
  evicted_steps_ += static_cast<std::uint64_t>(e.length);
}

inline GoalIndex& Store::index_of(std::int32_t goal) {
  if (frees_) {
    auto& index = goals_by_text_[goal];
    if (!index) index = std::make_shared<GoalIndex>(goal, reclaimer_);
    return *index;
  }
  const auto id = static_cast<std::size_t>(goal);
  if (id >= slot_of_.size()) slot_of_.resize(std::max(id + 1, slot_of_.size() * 2), -1);
  if (slot_of_[id] < 0) {
    goals_.push_back(std::make_unique<GoalIndex>(goal, reclaimer_));
    slot_of_[id] = static_cast<std::int32_t>(goals_.size() - 1);
  }
  return *goals_[static_cast<std::size_t>(slot_of_[id])];
}

inline void Store::activate(GoalIndex& index) {
  const std::size_t count = active_count_.load(std::memory_order_relaxed);
  index.rank = static_cast<std::int32_t>(count);
  // Release, twice: a reader that finds the goal finds its first position.
  owned_active_.get()[count].store(&index, std::memory_order_release);
  active_count_.store(count + 1, std::memory_order_release);
}

inline void Store::deactivate(GoalIndex& index) {  // the last active goal takes its place
  const std::size_t last = active_count_.load(std::memory_order_relaxed) - 1;
  GoalIndex* mover = owned_active_.get()[last].load(std::memory_order_relaxed);
  owned_active_.get()[index.rank].store(mover, std::memory_order_release);
  mover->rank = index.rank;
  index.rank = -1;
  active_count_.store(last, std::memory_order_release);
  if (!frees_) return;
  const auto found = goals_by_text_.find(index.goal);
  reclaimer_.retire(std::move(found->second));  // a reader may still look at it
  goals_by_text_.erase(found);
}

inline void Store::grow_active() {
  const std::size_t room = std::max<std::size_t>(16, active_room_ * 2);
  std::shared_ptr<ActiveSlot[]> bigger(new ActiveSlot[room]);
  for (std::size_t i = 0; i < active_room_; ++i) {
    bigger.get()[i].store(owned_active_.get()[i].load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
  }
  active_.store(bigger.get(), std::memory_order_release);
  std::swap(owned_active_, bigger);
  active_room_ = room;
  if (bigger) reclaimer_.retire(std::move(bigger));
}

inline std::vector<std::int32_t> Store::active_order() const {
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < active_goals(); ++i) order.push_back(active_goal(i).goal);
  return order;
}

inline bool Store::reorder_active_goals(const std::vector<std::int32_t>& order) {
  std::vector<std::int32_t> ours = active_order();
  std::vector<std::int32_t> theirs = order;
  std::sort(ours.begin(), ours.end());
  std::sort(theirs.begin(), theirs.end());
  if (ours != theirs) return false;
  for (std::size_t i = 0; i < order.size(); ++i) {
    GoalIndex& index = index_of(order[i]);
    index.rank = static_cast<std::int32_t>(i);
    owned_active_.get()[i].store(&index, std::memory_order_release);
  }
  return true;
}

inline std::size_t Store::bytes() const {
  std::size_t total = rows_.bytes() + links_.bytes() + events_.bytes() + episodes_.bytes() +
                      her_rows_.bytes() + slot_of_.capacity() * sizeof(std::int32_t) +
                      goals_.size() * (sizeof(GoalIndex) + sizeof(void*)) +
                      active_room_ * sizeof(ActiveSlot) + (priorities_ ? priorities_->bytes() : 0);
  for (const auto& g : goals_) total += g->achievements.bytes();
  for (const auto& [goal, g] : goals_by_text_) total += sizeof(GoalIndex) + g->achievements.bytes();
  return total;
}

}  // namespace sacglam::replay
