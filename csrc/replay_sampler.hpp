// Draws the rows of a batch: which transition, under which goal, with which n-step target.
#pragma once

#include <algorithm>
#include <vector>

#include "replay_store.hpp"
#include "replay_template.hpp"

namespace sacglam::replay {

struct Draw {
  std::int64_t episode;
  std::int32_t step;
  std::int32_t goal;
  bool relabeled;
};

struct PlannedRow {
  Draw draw;
  std::int32_t candidates;
  std::int32_t next_candidates;
  std::int32_t action;
  std::int32_t steps;  // m
  float n_step_return;
  float discount;
  std::size_t prompt_tokens;
  std::size_t next_tokens;
};

// What a batch needs after the lock is released: rows, and where their tokens lie.
struct Plan {
  std::vector<PlannedRow> rows;
  std::vector<Span> prompt_spans;
  std::vector<Span> next_spans;
  std::size_t prompt_tokens = 0;
  std::size_t next_tokens = 0;
  std::size_t relabeled = 0;

  void clear() {
    rows.clear();
    prompt_spans.clear();
    next_spans.clear();
    prompt_tokens = next_tokens = relabeled = 0;
  }
};

class StoredSteps {
 public:
  StoredSteps(const Store& store, const Episode& e) : rows_(store.rows()), e_(e) {}
  std::int32_t observation(std::int32_t i) const {
    return i < e_.length ? row(i).observation : e_.last_observation;
  }
  std::int32_t candidates(std::int32_t i) const {
    return i < e_.length ? row(i).candidates : e_.last_candidates;
  }
  std::int32_t action(std::int32_t i) const { return row(i).action; }
  float reward(std::int32_t i) const { return row(i).reward; }

 private:
  const Row& row(std::int32_t i) const {
    return rows_[e_.row_begin + static_cast<std::uint64_t>(i)];
  }
  const Fifo<Row>& rows_;
  const Episode& e_;
};

class Sampler {
 public:
  Sampler(const Settings& settings, const Store& store, const Tables& tables, const Template& form)
      : settings_(settings), store_(store), tables_(tables), form_(form) {}

  // Exactly floor or ceil of her_ratio * rows are relabeled, its mean over batches is exact, and
  // they are spread evenly over the batch. None when nothing can be relabeled.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out) const {
    out.clear();
    out.rows.reserve(rows);
    const std::size_t share = relabeled_share(rows, seed, batch);
    for (std::size_t i = 0; i < rows; ++i) {
      CounterRng rng(seed, batch, i);
      const bool relabel = (i + 1) * share / rows > i * share / rows;
      add_row(relabel ? draw_relabeled(rng) : draw_plain(rng), out);
      out.relabeled += relabel ? 1 : 0;
    }
  }

 private:
  std::size_t relabeled_share(std::size_t rows, std::uint64_t seed, std::uint64_t batch) const {
    const bool possible = settings_.strategy != Strategy::kNone && !store_.active_goals().empty();
    if (!possible) return 0;
    const double exact = settings_.her_ratio * static_cast<double>(rows);
    const double whole = std::floor(exact);
    CounterRng rng(seed, batch, CounterRng::kBatchRow);
    const std::size_t extra = rng.unit() < exact - whole ? 1 : 0;
    return std::min(rows, static_cast<std::size_t>(whole) + extra);
  }

  Draw draw_plain(CounterRng& rng) const {
    const std::uint64_t position = store_.rows().head() + rng.below(store_.rows().size());
    const std::int64_t id = store_.rows()[position].episode;
    const Episode& e = store_.episode(id);
    return {id, static_cast<std::int32_t>(position - e.row_begin), e.goal, false};
  }

  Draw draw_relabeled(CounterRng& rng) const {
    const Strategy strategy = settings_.strategy;
    const bool by_goal = settings_.balance == Balance::kGoals;
    if (strategy == Strategy::kRandom) {
      Draw draw = draw_plain(rng);
      draw.goal =
          by_goal
              ? draw_goal(rng)
              : store_.events()[store_.events().head() + rng.below(store_.events().size())].goal;
      draw.relabeled = true;
      return draw;
    }
    if (by_goal) {
      const std::int32_t goal = draw_goal(rng);
      const Fifo<std::uint64_t>& positions = store_.events_of(goal);
      const Event& event =
          store_.events()[positions[positions.head() + rng.below(positions.size())]];
      const std::int32_t choices =
          strategy == Strategy::kFuture ? event.step + 1 : store_.episode(event.episode).length;
      const auto step = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(choices)));
      return {event.episode, step, goal, true};
    }
    const Fifo<std::int64_t>& her = store_.her_rows();
    const std::uint64_t position = her.head() + rng.below(her.size());
    const std::int64_t id = her[position];
    const Episode& e = store_.episode(id);
    const auto step = static_cast<std::int32_t>(position - e.her_begin);
    const std::uint64_t end = e.event_begin + e.events;
    std::uint64_t begin = e.event_begin;
    if (strategy == Strategy::kFuture) begin = first_event_from(e, step);
    if (strategy == Strategy::kFinal) begin = end - e.final_events;
    return {id, step, store_.events()[begin + rng.below(end - begin)].goal, true};
  }

  std::int32_t draw_goal(CounterRng& rng) const {
    const auto& goals = store_.active_goals();
    return goals[static_cast<std::size_t>(rng.below(goals.size()))];
  }

  // Position of the first event of `e` at or after `step`.
  std::uint64_t first_event_from(const Episode& e, std::int32_t step) const {
    std::uint64_t low = e.event_begin;
    std::uint64_t high = e.event_begin + e.events;
    while (low < high) {
      const std::uint64_t middle = low + (high - low) / 2;
      if (store_.events()[middle].step < step) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  void add_row(const Draw& draw, Plan& out) const {
    const Episode& e = store_.episode(draw.episode);
    const StoredSteps steps(store_, e);
    const std::int32_t t = draw.step;
    std::int32_t m = std::min(settings_.n_step, e.length - t);
    double reward = 0.0;
    double gamma_m = 1.0;
    bool terminal = false;
    if (draw.relabeled) {
      // Under another goal the recorded rewards and termination say nothing: only a hit ends.
      const std::uint64_t end = e.event_begin + e.events;
      for (std::uint64_t p = first_event_from(e, t); p < end; ++p) {
        const Event& event = store_.events()[p];
        if (event.step >= t + m) break;
        if (event.goal == draw.goal) {
          m = event.step - t + 1;
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
        reward += gamma_m * static_cast<double>(steps.reward(t + k));
        gamma_m *= settings_.gamma;
      }
      terminal = e.terminated != 0 && t + m == e.length;
    }
    PlannedRow row{};
    row.draw = draw;
    row.candidates = steps.candidates(t);
    row.next_candidates = steps.candidates(t + m);
    row.action = steps.action(t);
    row.steps = m;
    row.n_step_return = static_cast<float>(reward);
    row.discount = terminal ? 0.0F : static_cast<float>(gamma_m);
    row.prompt_tokens = form_.emit(tables_, steps, t, draw.goal, out.prompt_spans);
    row.next_tokens = form_.emit(tables_, steps, t + m, draw.goal, out.next_spans);
    out.prompt_tokens += row.prompt_tokens;
    out.next_tokens += row.next_tokens;
    out.rows.push_back(row);
  }

  const Settings& settings_;
  const Store& store_;
  const Tables& tables_;
  const Template& form_;
};

}  // namespace sacglam::replay
