// Draws the rows of a batch: which transition, under which goal, with which n-step target.
//
// Runs beside a writer without a lock. A row that the writer overtakes while it is being drawn is
// thrown away whole and drawn again; on contents at rest no row ever is.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "replay_target.hpp"

namespace sacglam::replay {

class Sampler {
 public:
  Sampler(const Settings& settings, const Store& store, const Tables& tables, const Template& form)
      : settings_(settings),
        store_(store),
        tables_(tables),
        form_(form),
        targets_(settings, store) {
    if (store.priorities() != nullptr) priorities_.emplace(*store.priorities(), store.rows());
  }

  // Exactly floor or ceil of her_ratio * rows are relabeled, its mean over batches is exact, and
  // they are spread evenly over the batch. None when nothing can be relabeled.
  // The store must hold something; then it always will.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out) {
    out.clear();
    out.rows.reserve(rows);
    const std::size_t share = relabeled_share(rows, seed, batch);
    // In groups: the memory that one row needs is on its way while others are worked on. A row
    // is a chain of some six reads, each of which misses the caches in a large buffer.
    Attempt group[kGroup];
    for (std::size_t i = 0; i < rows;) {
      std::size_t size = 0;
      for (; size < kGroup && i < rows; ++size, ++i) {
        const bool relabel = (i + 1) * share / rows > i * share / rows;
        group[size].rng = CounterRng(seed, batch, i);
        group[size].relabel = relabel && can_relabel();
        group[size].any_goal = group[size].relabel && draw_any_goal(group[size].rng);
      }
      draw_group(group, size);
      for (std::size_t j = 0; j < size; ++j) finish(group[j], out);
    }
  }

  // The same share of rows is offered to `hook`, which says what their goals are; they are drawn
  // as the plain ones are. A row that is overtaken while the hook runs is drawn anew, and plain.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out,
            const GoalHook& hook) {
    out.clear();
    out.rows.reserve(rows);
    const std::size_t share = share_of(rows, seed, batch);
    std::vector<Attempt> all(rows);
    for (std::size_t i = 0; i < rows; ++i) all[i].rng = CounterRng(seed, batch, i);
    for (std::size_t i = 0; i < rows; i += kGroup) draw_group(&all[i], std::min(kGroup, rows - i));
    GoalRequest request;
    std::vector<std::size_t> offered;
    for (std::size_t i = 0; i < rows; ++i) {
      for (; !all[i].ready; ++out.redrawn) draw(all[i]);
      if ((i + 1) * share / rows == i * share / rows) continue;
      offered.push_back(i);
      const auto most = static_cast<std::size_t>(
          std::min(settings_.n_step, all[i].draw.episode.length - all[i].draw.step));
      request.width = std::max(request.width, most);
    }
    request.achieved_offsets.push_back(0);
    for (const std::size_t i : offered) targets_.ask(all[i].draw, i, request);
    if (!request.row.empty()) {
      const GoalAnswer answer = hook(request);
      for (std::size_t r = 0; r < request.row.size(); ++r) {
        if (answer.goal[r] < 0) continue;
        Attempt& a = all[static_cast<std::size_t>(request.row[r])];
        a.draw.goal = answer.goal[r];
        a.draw.relabeled = true;
        const std::size_t at = r * request.width;
        a.ready = targets_.target(a.draw, a.row, answer.hits.empty() ? nullptr : &answer.hits[at],
                                  answer.rewards.empty() ? nullptr : &answer.rewards[at]);
      }
    }
    for (Attempt& a : all) finish(a, out);
  }

 private:
  // A writer that is stopped just while it evicts the last achievement leaves nothing to draw;
  // nobody waits for it: the row is plain then.
  static constexpr int kAttempts = 64;
  static constexpr std::size_t kGroup = 32;

  bool can_relabel() const {
    return settings_.strategy != Strategy::kNone && store_.active_goals() > 0;
  }

  std::size_t relabeled_share(std::size_t rows, std::uint64_t seed, std::uint64_t batch) const {
    return can_relabel() ? share_of(rows, seed, batch) : 0;
  }
  std::size_t share_of(std::size_t rows, std::uint64_t seed, std::uint64_t batch) const {
    const double exact = settings_.her_ratio * static_cast<double>(rows);
    const double whole = std::floor(exact);
    CounterRng rng(seed, batch, CounterRng::kBatchRow);
    const std::size_t extra = rng.unit() < exact - whole ? 1 : 0;
    return std::min(rows, static_cast<std::size_t>(whole) + extra);
  }

  // Whether a relabeled row gets a goal of any episode.
  bool draw_any_goal(CounterRng& rng) const {
    if (settings_.strategy == Strategy::kRandom) return true;
    return settings_.her_random > 0.0 && rng.unit() < settings_.her_random;
  }

  struct Attempt {
    CounterRng rng{0, 0, 0};
    bool relabel = false;
    bool any_goal = false;
    bool ready = false;                    // `draw` and `row` are sound as far as they go
    CounterRng ahead{0, 0, 0};             // the scouts' alone, as is
    std::uint64_t trail;                   // where they are
    std::optional<Priorities::Pick> pick;  // of prioritised sampling: drawn by the first scout
    Draw draw;
    PlannedRow row;
  };

  enum class Chain { kRows, kGoals, kHerRows, kEpisodes, kHerEpisodes, kPicks };
  Chain chain_of(const Attempt& a) const {
    const bool plain = !a.relabel || a.any_goal;
    if (!plain && settings_.balance == Balance::kGoals) return Chain::kGoals;
    switch (settings_.sampling) {
      case Sampling::kPrioritised:
        return Chain::kPicks;
      case Sampling::kEpisodes:
        return plain ? Chain::kEpisodes : Chain::kHerEpisodes;
      default:
        return plain ? Chain::kRows : Chain::kHerRows;
    }
  }
  Priorities::Set set_of(const Attempt& a) const {
    return a.relabel && !a.any_goal ? Priorities::kHer : Priorities::kAll;
  }

  void draw_group(Attempt* group, std::size_t size) {
    for (std::size_t j = 0; j < size; ++j) scout(group[j]);
    for (std::size_t j = 0; j < size; ++j) scout_second(group[j]);
    for (std::size_t j = 0; j < size; ++j) scout_third(group[j]);
    for (std::size_t j = 0; j < size; ++j) draw(group[j]);
  }

  // The scouts walk the chain that draw() will walk, on a copy of its generator, and ask for the
  // next piece of memory. They decide nothing: what they read may be torn or gone. (A draw by
  // priority is dear, and made once: by the scout, with the generator itself.)
  void scout(Attempt& a) {
    a.ahead = a.rng;
    CounterRng& rng = a.ahead;
    switch (chain_of(a)) {
      case Chain::kRows:
        a.trail = draw_position(rng, store_.rows()).value_or(0);
        store_.rows().prefetch(a.trail);
        break;
      case Chain::kHerRows:
        a.trail = draw_position(rng, store_.her_rows()).value_or(0);
        store_.her_rows().prefetch(a.trail);
        break;
      case Chain::kEpisodes:
        a.trail = draw_position(rng, store_.episodes()).value_or(0);
        store_.episodes().prefetch(a.trail);
        break;
      case Chain::kHerEpisodes:
        a.trail = draw_position(rng, store_.her_rows()).value_or(0);
        store_.her_rows().prefetch(a.trail);
        break;
      case Chain::kPicks:
        a.pick = priorities_->pick(a.rng, set_of(a));
        a.trail = a.pick ? a.pick->position : 0;
        store_.rows().prefetch(a.trail);
        break;
      case Chain::kGoals: {
        const GoalIndex* index = draw_goal(rng);
        const auto place = index ? draw_position(rng, index->positions) : std::nullopt;
        a.trail = place ? index->positions.peek(*place) : 0;
        store_.events().prefetch(a.trail);
        break;
      }
    }
  }
  void scout_second(Attempt& a) const {
    switch (chain_of(a)) {
      case Chain::kRows:
      case Chain::kPicks:
        store_.episodes().prefetch(store_.rows().peek(a.trail).episode);
        break;
      case Chain::kHerRows:
      case Chain::kHerEpisodes:
        store_.episodes().prefetch(store_.her_rows().peek(a.trail));
        break;
      case Chain::kEpisodes:
        break;
      case Chain::kGoals:
        store_.episodes().prefetch(store_.events().peek(a.trail).episode);
        break;
    }
  }
  void scout_third(Attempt& a) const {
    Episode e{};
    std::uint64_t step = 0;
    switch (chain_of(a)) {
      case Chain::kRows:
        return;  // the first one asked for the row itself
      case Chain::kHerRows:
        e = store_.episodes().peek(store_.her_rows().peek(a.trail));
        step = a.trail - e.her_begin;
        break;
      case Chain::kPicks:
        e = store_.episodes().peek(store_.rows().peek(a.trail).episode);
        step = a.trail - e.row_begin;
        break;
      case Chain::kEpisodes:
        e = store_.episodes().peek(a.trail);
        step = a.ahead.below(static_cast<std::uint64_t>(e.length));
        break;
      case Chain::kHerEpisodes:
        e = store_.episodes().peek(store_.her_rows().peek(a.trail));
        step = a.ahead.below(e.her_steps);
        break;
      case Chain::kGoals: {
        const Event event = store_.events().peek(a.trail);
        e = store_.episodes().peek(event.episode);
        step = a.ahead.below(choices(event, e));
        break;
      }
    }
    store_.events().prefetch(e.event_begin + e.events / 2);
    store_.rows().prefetch(e.row_begin + step);
    store_.rows().prefetch(e.row_begin + step + static_cast<std::uint64_t>(settings_.n_step));
  }

  // First half of a row: everything but its prompts.
  void draw(Attempt& a) {
    // The last achievement may be evicted in the middle of a batch: the row is plain then.
    if (a.relabel && !can_relabel()) {
      a.relabel = false;
      a.pick.reset();
    }
    const std::optional<Draw> drawn = a.relabel ? draw_relabeled(a) : draw_plain(a);
    a.ready = drawn.has_value();
    if (!a.ready) return;
    a.draw = *drawn;
    a.ready = targets_.target(a.draw, a.row);
    if (!a.ready) return;
    const StoredSteps steps(store_, a.draw.episode);
    tables_.texts.prefetch(steps.observation(a.draw.step));
    tables_.texts.prefetch(steps.observation(a.draw.step + a.row.steps));
  }

  // Second half: the prompts, and the check that makes the row count.
  void finish(Attempt& a, Plan& out) {
    const std::size_t prompt_spans = out.prompt_spans.size();
    const std::size_t next_spans = out.next_spans.size();
    for (int attempt = 1; !a.ready || !add_row(a, out); ++attempt) {
      out.prompt_spans.resize(prompt_spans);
      out.next_spans.resize(next_spans);
      ++out.redrawn;
      if (attempt >= kAttempts) a.relabel = false;
      draw(a);
    }
  }

  template <class T>
  static std::optional<std::uint64_t> draw_position(CounterRng& rng, const Ring<T>& ring) {
    const auto [head, tail] = ring.range();
    if (head == tail) return std::nullopt;
    return head + rng.below(tail - head);
  }

  // By priority, among all transitions or those that hindsight can use.
  std::optional<Draw> draw_picked(Attempt& a) {
    std::optional<Priorities::Pick> pick = std::exchange(a.pick, std::nullopt);
    if (!pick) {  // the first one failed: the head has moved on, perhaps by more than a lap
      priorities_->renew();
      pick = priorities_->pick(a.rng, set_of(a));
    }
    Row row;
    Episode e;
    if (!pick || !store_.rows().read(pick->position, row)) return std::nullopt;
    if (!store_.episodes().read(row.episode, e)) return std::nullopt;
    const auto step = static_cast<std::int32_t>(pick->position - e.row_begin);
    return Draw{row.episode, e, step, e.goal, false, pick->scale};
  }

  std::optional<Draw> draw_plain(Attempt& a) {
    CounterRng& rng = a.rng;
    if (priorities_) return draw_picked(a);
    if (settings_.sampling == Sampling::kEpisodes) {
      const auto id = draw_position(rng, store_.episodes());
      Episode e;
      if (!id || !store_.episodes().read(*id, e)) return std::nullopt;
      const auto step = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(e.length)));
      return Draw{*id, e, step, e.goal, false};
    }
    const auto position = draw_position(rng, store_.rows());
    Row row;
    Episode e;
    if (!position || !store_.rows().read(*position, row)) return std::nullopt;
    if (!store_.episodes().read(row.episode, e)) return std::nullopt;
    const auto step = static_cast<std::int32_t>(*position - e.row_begin);
    return Draw{row.episode, e, step, e.goal, false};
  }

  std::optional<Draw> draw_relabeled(Attempt& a) {
    CounterRng& rng = a.rng;
    if (a.any_goal) {
      std::optional<Draw> draw = draw_plain(a);
      if (!draw) return std::nullopt;
      draw->relabeled = true;
      if (settings_.balance == Balance::kGoals) {
        const GoalIndex* index = draw_goal(rng);
        if (index == nullptr) return std::nullopt;
        draw->goal = index->goal;
        return draw;
      }
      const auto position = draw_position(rng, store_.events());
      Event event;
      if (!position || !store_.events().read(*position, event)) return std::nullopt;
      draw->goal = event.goal;
      return draw;
    }
    return settings_.balance == Balance::kGoals ? draw_by_goal(rng) : draw_by_event(a);
  }

  std::optional<Draw> draw_by_goal(CounterRng& rng) {
    const GoalIndex* index = draw_goal(rng);
    if (index == nullptr) return std::nullopt;
    const auto place = draw_position(rng, index->positions);
    std::uint64_t position;
    Event event;
    if (!place || !index->positions.read(*place, position)) return std::nullopt;
    if (!store_.events().read(position, event)) return std::nullopt;
    Episode e;
    if (!store_.episodes().read(event.episode, e)) return std::nullopt;
    const std::uint64_t among = choices(event, e);
    if (priorities_) {
      const auto pick = priorities_->pick(rng, e.row_begin, e.row_begin + among);
      if (!pick) return std::nullopt;
      const auto picked = static_cast<std::int32_t>(pick->position - e.row_begin);
      return Draw{event.episode, e, picked, index->goal, true, pick->scale};
    }
    const auto step = static_cast<std::int32_t>(rng.below(among));
    return Draw{event.episode, e, step, index->goal, true};
  }

  // Among how many steps of `e` the one before `event` is drawn.
  std::uint64_t choices(const Event& event, const Episode& e) const {
    const bool future = settings_.strategy == Strategy::kFuture;
    return static_cast<std::uint64_t>(future ? event.step + 1 : e.length);
  }

  // A transition that can be relabeled; its goal is not yet drawn.
  std::optional<Draw> draw_her_row(Attempt& a) {
    if (priorities_) return draw_picked(a);
    const auto position = draw_position(a.rng, store_.her_rows());
    std::uint64_t id;
    Episode e;
    if (!position || !store_.her_rows().read(*position, id)) return std::nullopt;
    if (!store_.episodes().read(id, e)) return std::nullopt;
    const std::uint64_t step = settings_.sampling == Sampling::kEpisodes ? a.rng.below(e.her_steps)
                                                                         : *position - e.her_begin;
    return Draw{id, e, static_cast<std::int32_t>(step), e.goal, false};
  }

  std::optional<Draw> draw_by_event(Attempt& a) {
    std::optional<Draw> draw = draw_her_row(a);
    if (!draw) return std::nullopt;
    const Episode& e = draw->episode;
    const std::int32_t step = draw->step;
    const std::uint64_t end = e.event_begin + e.events;
    std::uint64_t begin = e.event_begin;
    if (settings_.strategy == Strategy::kFuture) begin = targets_.first_event_from(e, step);
    if (settings_.strategy == Strategy::kFinal) begin = end - e.final_events;
    if (begin >= end) return std::nullopt;  // its events are being overwritten
    Event event;
    if (!store_.events().read(begin + a.rng.below(end - begin), event)) return std::nullopt;
    draw->goal = event.goal;
    draw->relabeled = true;
    return draw;
  }

  const GoalIndex* draw_goal(CounterRng& rng) const {
    const std::size_t count = store_.active_goals();
    return count == 0 ? nullptr : &store_.active_goal(static_cast<std::size_t>(rng.below(count)));
  }

  // False when the episode was evicted before all of it was read.
  bool add_row(Attempt& a, Plan& out) const {
    const StoredSteps steps(store_, a.draw.episode);
    PlannedRow& row = a.row;
    row.prompt_tokens = form_.emit(tables_, steps, row.step, row.goal, out.prompt_spans);
    row.next_tokens = form_.emit(tables_, steps, row.step + row.steps, row.goal, out.next_spans);
    // A goal of another episode's may have been freed with that one; ids are not used again, so
    // that what is there now was there above.
    if (tables_.texts[row.goal].data == nullptr) return false;
    // One check covers rows, events and history: an episode is evicted as a whole.
    if (!store_.episodes().still_live(a.draw.id)) return false;
    out.prompt_tokens += row.prompt_tokens;
    out.next_tokens += row.next_tokens;
    out.relabeled += row.relabeled ? 1 : 0;
    if (priorities_) out.scales.push_back(a.draw.scale);
    out.rows.push_back(row);
    return true;
  }

  const Settings& settings_;
  const Store& store_;
  const Tables& tables_;
  const Template& form_;
  const Targets targets_;
  std::optional<Priorities::View> priorities_;  // of prioritised sampling
};

}  // namespace sacglam::replay
