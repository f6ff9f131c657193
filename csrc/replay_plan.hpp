// A batch that was drawn, before its tokens are copied; and goals that a user proposes for it.
#pragma once

#include <bit>
#include <functional>
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
  std::uint64_t first_event;  // at or after `step`; of relabeled rows
  double scale = 1.0;         // N * P, of prioritised sampling
};

struct PlannedRow {
  std::uint64_t episode;
  std::uint64_t position;  // in the ring of rows: counts up forever
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
  Spans prompt_spans;
  Spans next_spans;
  std::size_t prompt_tokens = 0;
  std::size_t next_tokens = 0;
  std::size_t relabeled = 0;
  std::size_t redrawn = 0;  // attempts that a writer overtook
  // Of prioritised sampling: N * P of each row, and what follows from it; else empty.
  std::vector<double> scales;
  std::vector<double> weights;

  // For a new batch. Every field of every row will be written.
  void restart(std::size_t size) {
    rows.resize(size);
    prompt_spans.cut(0);
    next_spans.cut(0);
    scales.clear();
    weights.clear();
    prompt_tokens = next_tokens = relabeled = redrawn = 0;
  }
};

class StoredSteps {
 public:
  StoredSteps(const Contents& now, const Episode& e) : rows_(now.rows), e_(e) {}
  std::int32_t observation(std::int32_t i) const {
    return i < e_.length ? word(i, 0)[0] : e_.last_observation;
  }
  std::int32_t candidates(std::int32_t i) const {
    return i < e_.length ? word(i, 0)[1] : e_.last_candidates;
  }
  std::int32_t action(std::int32_t i) const { return word(i, 1)[0]; }
  float reward(std::int32_t i) const { return std::bit_cast<float>(word(i, 1)[1]); }

 private:
  std::array<std::int32_t, 2> word(std::int32_t i, std::size_t which) const {
    return rows_.peek_pair(e_.row_begin + static_cast<std::uint64_t>(i), which);
  }
  const Ring<Row>::View& rows_;
  const Episode& e_;
};

// What a user's own relabeling is asked, once a batch: R rows of it. `width` is the most steps that
// any of their returns can have.
struct GoalRequest {
  std::size_t width = 0;
  std::vector<std::int32_t> row;               // [R] places in the batch
  std::vector<std::int64_t> episode;           // [R]
  std::vector<std::int32_t> step;              // [R] t
  std::vector<std::int32_t> length;            // [R] of the episode
  std::vector<std::int32_t> goal;              // [R] as recorded
  std::vector<std::int32_t> observations;      // [R, width + 1] of s_t .. s_{t+width}, -1 beyond
  std::vector<std::int64_t> achieved_offsets;  // [R + 1]
  std::vector<std::int32_t> achieved;          // [*] goals achieved at t or later
  std::vector<std::int32_t> achieved_steps;    // [*] by which steps
};

struct GoalAnswer {
  std::vector<std::int32_t> goal;  // [R], -1: stays as recorded
  std::vector<std::uint8_t> hits;  // [R, width] whether t + k reaches it, or empty: as recorded
  std::vector<float> rewards;      // [R, width], or empty: her_reward at the hit
};

using GoalHook = std::function<GoalAnswer(const GoalRequest&)>;

}  // namespace sacglam::replay
