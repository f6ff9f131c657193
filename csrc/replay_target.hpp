// The n-step target of a drawn row, under its recorded goal or another one.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "replay_plan.hpp"

namespace sacglam::replay {

class Targets {
 public:
  Targets(const Settings& settings, const Contents& now) : settings_(settings), now_(now) {
    for (std::size_t k = 1; k < powers_.size(); ++k) powers_[k] = powers_[k - 1] * settings.gamma;
  }

  // Position of the first event of `e` at or after `step`.
  std::uint64_t first_event_from(const Episode& e, std::int32_t step) const {
    // Halving in as many rounds for any answer, and without a branch on what is found: half of
    // those would be mispredicted.
    const auto before = [&](std::uint64_t p) { return now_.events.peek_pair(p, 0)[1] < step; };
    std::uint64_t first = e.event_begin;
    std::uint64_t n = e.events;
    for (; n > 1; n -= n / 2) first += before(first + n / 2 - 1) ? n / 2 : 0;
    return first + (n > 0 && before(first) ? 1 : 0);
  }

  // The n-step target. Until the check in Sampler::add_row() what is read may be torn: it is only
  // used where any value is harmless. False when it is seen to be. A user's relabeling may say
  // itself which of the following steps reach the goal, and what they pay.
  bool target(const Draw& draw, PlannedRow& row, const std::uint8_t* hits = nullptr,
              const float* rewards = nullptr) const {
    const Episode& e = draw.episode;
    const StoredSteps steps(now_, e);
    const std::int32_t t = draw.step;
    const std::int32_t goal = draw.goal;
    const bool relabeled = draw.relabeled;
    std::int32_t m = std::min(settings_.n_step, e.length - t);
    double reward = 0.0;
    double gamma_k = 1.0;
    bool terminal = false;
    if (relabeled) {
      // Under another goal the recorded rewards say nothing: a hit pays and ends.
      bool hit = false;
      for (std::int32_t k = 0; hits != nullptr && k < m && !hit; ++k) {
        if (hits[k] == 0) continue;
        m = k + 1;
        hit = true;
      }
      const std::uint64_t end = e.event_begin + e.events;
      for (std::uint64_t p = draw.first_event; hits == nullptr && p < end; ++p) {
        const auto [event_goal, event_step] = now_.events.peek_pair(p, 0);
        if (event_step < t) return false;
        if (event_step >= t + m) break;
        if (event_goal == goal) {
          m = event_step - t + 1;
          hit = true;
          break;
        }
      }
      // What ended without a reward failed (death, a trap): no goal has a future there.
      terminal =
          hit || (e.terminated != 0 && t + m == e.length && steps.reward(e.length - 1) <= 0.0F);
      for (std::int32_t k = 0; rewards != nullptr && k < m; ++k) {
        reward += gamma_k * static_cast<double>(rewards[k]);
        gamma_k *= settings_.gamma;
      }
      if (hit && rewards == nullptr)
        reward += power(m - 1) * static_cast<double>(settings_.her_reward);
    } else {
      for (std::int32_t k = 0; k < m; ++k) {
        reward += gamma_k * static_cast<double>(steps.reward(t + k));
        gamma_k *= settings_.gamma;
      }
      terminal = e.terminated != 0 && t + m == e.length;
    }
    row.episode = e.label;
    row.position = e.row_begin + static_cast<std::uint64_t>(t);
    row.step = t;
    row.goal = goal;
    row.candidates = steps.candidates(t);
    row.next_candidates = steps.candidates(t + m);
    row.action = steps.action(t);
    row.steps = m;
    row.n_step_return = static_cast<float>(reward);
    row.discount = terminal ? 0.0F : static_cast<float>(power(m));
    row.relabeled = relabeled;
    return true;
  }

  // What the hook must know of a row; nothing when the row was overtaken meanwhile.
  void ask(const Draw& draw, std::size_t i, GoalRequest& out) const {
    const Episode& e = draw.episode;
    const std::int32_t t = draw.step;
    const StoredSteps steps(now_, e);
    for (std::size_t k = 0; k <= out.width; ++k) {
      const auto at = t + static_cast<std::int32_t>(k);
      out.observations.push_back(at <= e.length ? steps.observation(at) : -1);
    }
    const std::uint64_t end = e.event_begin + e.events;
    for (std::uint64_t p = first_event_from(e, t); p < end; ++p) {
      const auto [goal, step] = now_.events.peek_pair(p, 0);
      out.achieved.push_back(goal);
      out.achieved_steps.push_back(step);
    }
    if (!now_.episodes.still_live(draw.id)) {
      out.observations.resize(out.row.size() * (out.width + 1));
      const auto events = static_cast<std::size_t>(out.achieved_offsets.back());
      out.achieved.resize(events);
      out.achieved_steps.resize(events);
      return;
    }
    out.row.push_back(static_cast<std::int32_t>(i));
    out.episode.push_back(static_cast<std::int64_t>(e.label));
    out.step.push_back(t);
    out.length.push_back(e.length);
    out.goal.push_back(e.goal);
    out.achieved_offsets.push_back(static_cast<std::int64_t>(out.achieved.size()));
  }

 private:
  // gamma^k, by repeated multiplication; looked up where it is short.
  double power(std::int32_t k) const {
    const auto last = static_cast<std::int32_t>(powers_.size()) - 1;
    double p = powers_[static_cast<std::size_t>(std::min(k, last))];
    for (; k > last; --k) p *= settings_.gamma;
    return p;
  }

  const Settings& settings_;
  const Contents& now_;
  std::array<double, 16> powers_{1.0};
};

}  // namespace sacglam::replay
