// Draws the rows of a batch: which transition, under which goal, with which n-step target.
//
// Runs beside a writer without a lock. A row that the writer overtakes while it is being drawn is
// thrown away whole and drawn again; on contents at rest no row ever is.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "replay_store.hpp"
#include "replay_template.hpp"

namespace sacglam::replay {

struct Draw {
  std::uint64_t id;
  Episode episode;
  std::int32_t step;
  std::int32_t goal;
  bool relabeled;
};

struct PlannedRow {
  std::uint64_t episode;
  std::int32_t step;
  std::int32_t goal;
  std::int32_t candidates;
  std::int32_t next_candidates;
  std::int32_t action;
  std::int32_t steps;  // m
  float n_step_return;
  float discount;
  bool relabeled;
  std::size_t prompt_tokens;
  std::size_t next_tokens;
};

// A drawn batch: rows, and where their tokens lie (in memory that never moves).
struct Plan {
  std::vector<PlannedRow> rows;
  std::vector<Span> prompt_spans;
  std::vector<Span> next_spans;
  std::size_t prompt_tokens = 0;
  std::size_t next_tokens = 0;
  std::size_t relabeled = 0;
  std::size_t redrawn = 0;  // attempts that a writer overtook

  void clear() {
    rows.clear();
    prompt_spans.clear();
    next_spans.clear();
    prompt_tokens = next_tokens = relabeled = redrawn = 0;
  }
};

class StoredSteps {
 public:
  StoredSteps(const Store& store, const Episode& e) : rows_(store.rows()), e_(e) {}
  std::int32_t observation(std::int32_t i) const {
    return i < e_.length ? word(i, 0)[0] : e_.last_observation;
  }
  std::int32_t candidates(std::int32_t i) const {
    return i < e_.length ? word(i, 0)[1] : e_.last_candidates;
  }
  std::int32_t action(std::int32_t i) const { return word(i, 1)[0]; }
  Row row(std::int32_t i) const { return rows_.peek(e_.row_begin + static_cast<std::uint64_t>(i)); }

 private:
  std::array<std::int32_t, 2> word(std::int32_t i, std::size_t which) const {
    return rows_.peek_pair(e_.row_begin + static_cast<std::uint64_t>(i), which);
  }
  const Ring<Row>& rows_;
  const Episode& e_;
};

class Sampler {
 public:
  Sampler(const Settings& settings, const Store& store, const Tables& tables, const Template& form)
      : settings_(settings), store_(store), tables_(tables), form_(form) {}

  // Exactly floor or ceil of her_ratio * rows are relabeled, its mean over batches is exact, and
  // they are spread evenly over the batch. None when nothing can be relabeled.
  // The store must hold something; then it always will.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out) const {
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
        scout(group[size]);
      }
      for (std::size_t j = 0; j < size; ++j) scout_second(group[j]);
      for (std::size_t j = 0; j < size; ++j) scout_third(group[j]);
      for (std::size_t j = 0; j < size; ++j) draw(group[j]);
      for (std::size_t j = 0; j < size; ++j) finish(group[j], out);
    }
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
    if (!can_relabel()) return 0;
    const double exact = settings_.her_ratio * static_cast<double>(rows);
    const double whole = std::floor(exact);
    CounterRng rng(seed, batch, CounterRng::kBatchRow);
    const std::size_t extra = rng.unit() < exact - whole ? 1 : 0;
    return std::min(rows, static_cast<std::size_t>(whole) + extra);
  }

  struct Attempt {
    CounterRng rng{0, 0, 0};
    bool relabel = false;
    bool ready = false;         // `draw` and `row` are sound as far as they go
    CounterRng ahead{0, 0, 0};  // the scouts' alone, as is
    std::uint64_t trail;        // where they are
    Draw draw;
    PlannedRow row;
  };

  enum class Chain { kRows, kGoals, kHerRows };
  Chain chain_of(const Attempt& a) const {
    if (!a.relabel || settings_.strategy == Strategy::kRandom) return Chain::kRows;
    return settings_.balance == Balance::kGoals ? Chain::kGoals : Chain::kHerRows;
  }

  // The scouts walk the chain that draw() will walk, on a copy of its generator, and ask for the
  // next piece of memory. They decide nothing: what they read may be torn or gone.
  void scout(Attempt& a) const {
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
        store_.episodes().prefetch(store_.rows().peek(a.trail).episode);
        break;
      case Chain::kHerRows:
        store_.episodes().prefetch(store_.her_rows().peek(a.trail));
        break;
      case Chain::kGoals:
        store_.episodes().prefetch(store_.events().peek(a.trail).episode);
        break;
    }
  }
  void scout_third(Attempt& a) const {
    Episode e;
    std::uint64_t step;
    switch (chain_of(a)) {
      case Chain::kRows:
        return;  // the first one asked for the row itself
      case Chain::kHerRows:
        e = store_.episodes().peek(store_.her_rows().peek(a.trail));
        step = a.trail - e.her_begin;
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
  void draw(Attempt& a) const {
    // The last achievement may be evicted in the middle of a batch: the row is plain then.
    a.relabel = a.relabel && can_relabel();
    const std::optional<Draw> drawn = a.relabel ? draw_relabeled(a.rng) : draw_plain(a.rng);
    a.ready = drawn.has_value();
    if (!a.ready) return;
    a.draw = *drawn;
    a.ready = target(a.draw, a.row);
    if (!a.ready) return;
    const StoredSteps steps(store_, a.draw.episode);
    tables_.texts.prefetch(steps.observation(a.draw.step));
    tables_.texts.prefetch(steps.observation(a.draw.step + a.row.steps));
  }

  // Second half: the prompts, and the check that makes the row count.
  void finish(Attempt& a, Plan& out) const {
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

  std::optional<Draw> draw_plain(CounterRng& rng) const {
    const auto position = draw_position(rng, store_.rows());
    Row row;
    Episode e;
    if (!position || !store_.rows().read(*position, row)) return std::nullopt;
    if (!store_.episodes().read(row.episode, e)) return std::nullopt;
    const auto step = static_cast<std::int32_t>(*position - e.row_begin);
    return Draw{row.episode, e, step, e.goal, false};
  }

  std::optional<Draw> draw_relabeled(CounterRng& rng) const {
    if (settings_.strategy == Strategy::kRandom) {
      std::optional<Draw> draw = draw_plain(rng);
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
    return settings_.balance == Balance::kGoals ? draw_by_goal(rng) : draw_by_event(rng);
  }

  std::optional<Draw> draw_by_goal(CounterRng& rng) const {
    const GoalIndex* index = draw_goal(rng);
    if (index == nullptr) return std::nullopt;
    const auto place = draw_position(rng, index->positions);
    std::uint64_t position;
    Event event;
    if (!place || !index->positions.read(*place, position)) return std::nullopt;
    if (!store_.events().read(position, event)) return std::nullopt;
    Episode e;
    if (!store_.episodes().read(event.episode, e)) return std::nullopt;
    const auto step = static_cast<std::int32_t>(rng.below(choices(event, e)));
    return Draw{event.episode, e, step, index->goal, true};
  }

  // Among how many steps of `e` the one before `event` is drawn.
  std::uint64_t choices(const Event& event, const Episode& e) const {
    const bool future = settings_.strategy == Strategy::kFuture;
    return static_cast<std::uint64_t>(future ? event.step + 1 : e.length);
  }

  std::optional<Draw> draw_by_event(CounterRng& rng) const {
    const auto position = draw_position(rng, store_.her_rows());
    std::uint64_t id;
    Episode e;
    if (!position || !store_.her_rows().read(*position, id)) return std::nullopt;
    if (!store_.episodes().read(id, e)) return std::nullopt;
    const auto step = static_cast<std::int32_t>(*position - e.her_begin);
    const std::uint64_t end = e.event_begin + e.events;
    std::uint64_t begin = e.event_begin;
    if (settings_.strategy == Strategy::kFuture) begin = first_event_from(e, step);
    if (settings_.strategy == Strategy::kFinal) begin = end - e.final_events;
    if (begin >= end) return std::nullopt;  // its events are being overwritten
    Event event;
    if (!store_.events().read(begin + rng.below(end - begin), event)) return std::nullopt;
    return Draw{id, e, step, event.goal, true};
  }

  const GoalIndex* draw_goal(CounterRng& rng) const {
    const std::size_t count = store_.active_goals();
    return count == 0 ? nullptr : &store_.active_goal(static_cast<std::size_t>(rng.below(count)));
  }

  // Position of the first event of `e` at or after `step`.
  std::uint64_t first_event_from(const Episode& e, std::int32_t step) const {
    std::uint64_t low = e.event_begin;
    std::uint64_t high = e.event_begin + e.events;
    while (low < high) {
      const std::uint64_t middle = low + (high - low) / 2;
      if (store_.events().peek_pair(middle, 0)[1] < step) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The n-step target. Until the check in add_row() what is read may be torn: it is only used
  // where any value is harmless. False when it is seen to be.
  bool target(const Draw& draw, PlannedRow& row) const {
    const Episode& e = draw.episode;
    const StoredSteps steps(store_, e);
    const std::int32_t t = draw.step;
    const std::int32_t goal = draw.goal;
    const bool relabeled = draw.relabeled;
    std::int32_t m = std::min(settings_.n_step, e.length - t);
    double reward = 0.0;
    double gamma_m = 1.0;
    bool terminal = false;
    if (relabeled) {
      // Under another goal the recorded rewards and termination say nothing: only a hit ends.
      const std::uint64_t end = e.event_begin + e.events;
      for (std::uint64_t p = first_event_from(e, t); p < end; ++p) {
        const auto [event_goal, event_step] = store_.events().peek_pair(p, 0);
        if (event_step < t) return false;
        if (event_step >= t + m) break;
        if (event_goal == goal) {
          m = event_step - t + 1;
          terminal = true;
          break;
        }
      }
      double at_hit = 1.0;
      for (std::int32_t k = 0; k < m; ++k) {
        at_hit = gamma_m;
        gamma_m *= settings_.gamma;
      }
      if (terminal) reward += at_hit * static_cast<double>(settings_.her_reward);
    } else {
      for (std::int32_t k = 0; k < m; ++k) {
        reward += gamma_m * static_cast<double>(steps.row(t + k).reward);
        gamma_m *= settings_.gamma;
      }
      terminal = e.terminated != 0 && t + m == e.length;
    }
    const Row stored = steps.row(t);
    row.episode = e.label;
    row.step = t;
    row.goal = goal;
    row.candidates = stored.candidates;
    row.next_candidates = steps.candidates(t + m);
    row.action = stored.action;
    row.steps = m;
    row.n_step_return = static_cast<float>(reward);
    row.discount = terminal ? 0.0F : static_cast<float>(gamma_m);
    row.relabeled = relabeled;
    return true;
  }

  // False when the episode was evicted before all of it was read.
  bool add_row(Attempt& a, Plan& out) const {
    const StoredSteps steps(store_, a.draw.episode);
    PlannedRow& row = a.row;
    row.prompt_tokens = form_.emit(tables_, steps, row.step, row.goal, out.prompt_spans);
    row.next_tokens = form_.emit(tables_, steps, row.step + row.steps, row.goal, out.next_spans);
    // One check covers rows, events and history: an episode is evicted as a whole.
    if (!store_.episodes().still_live(a.draw.id)) return false;
    out.prompt_tokens += row.prompt_tokens;
    out.next_tokens += row.next_tokens;
    out.relabeled += row.relabeled ? 1 : 0;
    out.rows.push_back(row);
    return true;
  }

  const Settings& settings_;
  const Store& store_;
  const Tables& tables_;
  const Template& form_;
};

}  // namespace sacglam::replay
