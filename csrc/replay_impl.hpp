// What the methods of ReplayBuffer do.
#pragma once

#include "replay.hpp"

namespace sacglam::replay {

inline void ReplayBuffer::adopt(const std::int32_t* texts, std::size_t n_texts,
                                const std::int32_t* sets, std::size_t n_sets) const {
  if (!log_) return;
  const Tables& known = state().tables;
  const bool all =
      std::all_of(texts, texts + n_texts,
                  [&](std::int32_t id) { return known.texts.contains(id); }) &&
      std::all_of(sets, sets + n_sets, [&](std::int32_t id) { return known.sets.contains(id); });
  if (all) return;
  const std::lock_guard lock(writers(intern_));
  for (std::size_t i = 0; i < n_texts; ++i) owned_->tables.adopt_text(texts[i]);
  for (std::size_t i = 0; i < n_sets; ++i) owned_->tables.adopt_set(sets[i]);
}

inline void ReplayBuffer::adopt_all() const {
  if (!log_) return;
  const std::lock_guard lock(writers(intern_));
  for (std::int32_t id = 0; id < log_->texts().size(); ++id) owned_->tables.adopt_text(id);
  for (std::int32_t id = 0; id < log_->sets().size(); ++id) owned_->tables.adopt_set(id);
}

inline void ReplayBuffer::follow() {
  if (!log_) return;
  const Reclaimer::Guard guard(reclaimer_);
  const auto [head, tail] = state().store.rows().range();
  const bool empty = head == tail;
  // The news are heard of before they are taken over: by a thread that may be at it still.
  if (!empty && !log_->has_news()) return;
  std::unique_lock lock(writers(commit_), std::defer_lock);
  if (empty) {
    lock.lock();  // there is nothing to go on with until that thread is done
  } else if (!lock.try_lock()) {
    return;
  }
  log_->follow([&](std::uint64_t label, const EpisodeInput& input) {
    try {
      adopt(input);
      input.check(owned_->tables, settings_.capacity);
    } catch (const ReplayFault&) {
      return;  // longer than this process keeps, or another program's bug
    }
    owned_->store.add(input, label);
  });
}

inline void ReplayBuffer::load(const std::string& path) {
  const Checkpoint file = read_checkpoint(path);
  std::vector<LoadedEpisode> episodes;
  std::unique_lock interning(writers(intern_), std::defer_lock);
  if (log_) {
    if (log_->appended() > 0) {
      throw ReplayFault("the shared buffer '" + log_->name() +
                        "' holds episodes already: load a checkpoint into a fresh one");
    }
    interning.lock();
  }
  std::unique_ptr<State> loaded =
      read_state(file, settings_, new_state(0), reclaimer_, log_ ? &episodes : nullptr);
  if (interning.owns_lock()) interning.unlock();
  for (const LoadedEpisode& e : episodes) {
    if (!log_->fits(e.input.actions.size(), e.input.achieved.size())) {
      throw CheckpointFault("cannot load the replay checkpoint '" + path + "': episode " +
                            std::to_string(e.label) + " has " +
                            std::to_string(e.input.actions.size()) +
                            " transitions, more than a segment of the shared buffer '" +
                            log_->name() + "' holds; raise its capacity");
    }
  }
  const std::scoped_lock lock(commit_, intern_);
  if (log_) {  // for the other processes; here they are
    for (const LoadedEpisode& e : episodes) log_->append(e.input, e.label);
    log_->set_next(loaded->store.next_label());
    log_->follow([&](std::uint64_t, const EpisodeInput&) {});
  }
  // A key that was given to a batch of the old contents must not name a row of the new ones.
  // None was given while there were no rows.
  loaded->epoch = owned_->epoch + (owned_->store.rows().tail() > 0 ? 1 : 0);
  state_.store(loaded.get(), std::memory_order_release);
  owned_.swap(loaded);
  loads_.fetch_add(1, std::memory_order_release);
  versions_.fetch_add(1, std::memory_order_release);
  reclaimer_.retire(std::shared_ptr<const State>(std::move(loaded)));
  reclaimer_.collect();
}

template <class Place>
void ReplayBuffer::sample(std::size_t rows, double beta, Plan& plan, const Place& place,
                          const GoalHook& hook, std::optional<std::uint64_t> number) {
  follow();
  const Reclaimer::Guard guard(reclaimer_);
  State& state = *state_.load(std::memory_order_acquire);
  const Template& form = *state.current_form.load(std::memory_order_acquire);
  if (form.empty()) throw ReplayFault("no template is set: call set_template first");
  const auto [head, tail] = state.store.rows().range();
  if (head == tail) throw ReplayFault("the buffer is empty: add an episode before sampling");
  const std::uint64_t batch =
      number ? *number : state.batches.fetch_add(1, std::memory_order_relaxed);
  Sampler sampler(settings_, state.store, state.tables, form);
  BatchArrays to;
  try {
    if (hook) {
      sampler.plan(rows, state.seed, batch, plan,
                   [&](const GoalRequest& request) { return checked(hook, request, state); });
    } else {
      sampler.plan(rows, state.seed, batch, plan);
    }
    if (!plan.scales.empty()) weigh(plan.scales, beta, plan.weights);
    to = place(plan);
  } catch (...) {
    std::uint64_t mine = batch + 1;
    if (!number) state.batches.compare_exchange_strong(mine, batch, std::memory_order_relaxed);
    throw;
  }
  fill(plan, state.epoch, to);
  if (!number) count(state, plan.rows.size(), plan.relabeled, plan.redrawn);
}

inline GoalAnswer ReplayBuffer::checked(const GoalHook& hook, const GoalRequest& request,
                                        const State& state) const {
  GoalAnswer answer = hook(request);
  const std::size_t rows = request.row.size();
  const auto require = [&](const char* what, std::size_t got, std::size_t need) {
    if (got == need) return;
    throw ReplayFault(std::string("the goals hook returned ") + std::to_string(got) + " " + what +
                      " for " + std::to_string(rows) + " rows of " + std::to_string(request.width) +
                      " steps; " + std::to_string(need) + " are needed");
  };
  require("goals", answer.goal.size(), rows);
  if (!answer.hits.empty()) require("hits", answer.hits.size(), rows * request.width);
  if (!answer.rewards.empty()) require("rewards", answer.rewards.size(), rows * request.width);
  for (std::size_t i = 0; i < rows; ++i) {
    if (answer.goal[i] < -1) {
      throw ReplayFault("the goals hook returned " + std::to_string(answer.goal[i]) + " for row " +
                        std::to_string(i) + "; a goal is a text id, or -1 to leave the row alone");
    }
    if (answer.goal[i] == -1) continue;
    adopt(&answer.goal[i], 1, nullptr, 0);
    state.tables.require_text(answer.goal[i], "the goals hook");
  }
  for (const float reward : answer.rewards) {
    if (!std::isfinite(reward)) throw ReplayFault("the goals hook returned a reward not finite");
  }
  return answer;
}

inline std::size_t ReplayBuffer::update_priorities(const std::vector<std::int64_t>& keys,
                                                   const std::vector<double>& priorities) {
  if (settings_.sampling != Sampling::kPrioritised) {
    throw ReplayFault("priorities need a buffer made with sampling=\"prioritised\"");
  }
  if (keys.size() != priorities.size()) {
    throw ReplayFault("update_priorities was given " + std::to_string(keys.size()) + " keys and " +
                      std::to_string(priorities.size()) + " priorities");
  }
  for (std::size_t i = 0; i < priorities.size(); ++i) {
    if (std::isfinite(priorities[i]) && priorities[i] >= 0.0) continue;
    throw ReplayFault("priorities[" + std::to_string(i) + "] is " + std::to_string(priorities[i]) +
                      "; it must be finite and not negative");
  }
  const std::lock_guard lock(writers(commit_));
  State& state = *owned_;
  const auto [head, tail] = state.store.rows().range();
  constexpr std::uint64_t kPosition = (std::uint64_t{1} << kPositionBits) - 1;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto key = static_cast<std::uint64_t>(keys[i]);
    const std::uint64_t epoch = key >> kPositionBits;
    if (keys[i] >= 0 && (epoch < state.epoch || (epoch == state.epoch && (key & kPosition) < tail)))
      continue;
    throw ReplayFault("keys[" + std::to_string(i) + "] is " + std::to_string(keys[i]) +
                      ", which this buffer has given to no batch");
  }
  std::size_t updated = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto key = static_cast<std::uint64_t>(keys[i]);
    // The position of an evicted row is below the head for ever, whatever is in its place now.
    if (key >> kPositionBits != state.epoch || (key & kPosition) < head) continue;
    Priorities& all = *state.store.priorities();
    all.set(key & kPosition, all.value_of(priorities[i]));
    ++updated;
  }
  state.stale_priorities.fetch_add(keys.size() - updated, std::memory_order_relaxed);
  return updated;
}

inline std::vector<std::int32_t> ReplayBuffer::assemble(
    std::int32_t goal, const std::vector<std::int32_t>& observations,
    const std::vector<std::int32_t>& candidates, const std::vector<std::int32_t>& actions,
    std::int64_t t) const {
  struct RunningSteps {
    const std::vector<std::int32_t>&observations_, &candidates_, &actions_;
    std::int32_t observation(std::int32_t i) const {
      return observations_[static_cast<std::size_t>(i)];
    }
    std::int32_t candidates(std::int32_t i) const {
      return candidates_[static_cast<std::size_t>(i)];
    }
    std::int32_t action(std::int32_t i) const { return actions_[static_cast<std::size_t>(i)]; }
  };
  const auto steps = static_cast<std::int64_t>(std::min(observations.size(), candidates.size()));
  if (t < 0 || t >= steps || t > static_cast<std::int64_t>(actions.size())) {
    throw ReplayFault("step t = " + std::to_string(t) + " needs t + 1 observations and " +
                      "candidates and t actions; given " + std::to_string(observations.size()) +
                      ", " + std::to_string(candidates.size()) + " and " +
                      std::to_string(actions.size()));
  }
  const Reclaimer::Guard guard(reclaimer_);
  const Tables& tables = state().tables;
  const Template& form = *state().current_form.load(std::memory_order_acquire);
  if (form.empty()) throw ReplayFault("no template is set: call set_template first");
  adopt(&goal, 1, nullptr, 0);
  adopt(observations.data(), observations.size(), candidates.data(), candidates.size());
  tables.require_text(goal, "goal");
  for (std::size_t i = 0; i <= static_cast<std::size_t>(t); ++i) {
    tables.require_text(observations[i], "observations");
    tables.require_set(candidates[i], "candidates");
    if (i == static_cast<std::size_t>(t)) break;
    const std::size_t choices = tables.sets[candidates[i]].size;
    if (actions[i] < 0 || static_cast<std::size_t>(actions[i]) >= choices) {
      throw ReplayFault("actions[" + std::to_string(i) + "] is " + std::to_string(actions[i]) +
                        ", but that step has " + std::to_string(choices) + " candidates");
    }
  }
  Spans spans;
  const std::size_t tokens =
      form.emit(tables, RunningSteps{observations, candidates, actions},
                static_cast<std::int32_t>(t), tables.texts.entry(goal), spans);
  // Again: another thread may have freed what was there above. It stayed, if it is there now.
  tables.require_text(goal, "goal");
  for (std::size_t i = 0; frees() && i <= static_cast<std::size_t>(t); ++i) {
    tables.require_text(observations[i], "observations");
    tables.require_set(candidates[i], "candidates");
  }
  std::vector<std::int32_t> out(tokens);
  gather(spans, tokens, out.data());
  return out;
}

inline Stats ReplayBuffer::stats() {
  follow();
  const std::scoped_lock lock(writers(commit_), intern_);
  const State& s = *owned_;
  Stats out{};
  out.steps = s.store.rows().tail() - s.store.rows().head();
  out.episodes = s.store.episodes().tail() - s.store.episodes().head();
  out.evicted_steps = s.store.evicted_steps();
  out.goals = s.store.active_goals();
  out.bytes = s.store.bytes() + s.tables.texts.bytes() + s.tables.sets.bytes();
  out.content_bytes =
      s.lives ? s.content_bytes()
              : s.store.content_bytes() + s.tables.texts.bytes() + s.tables.sets.bytes();
  out.shared_bytes = log_ ? log_->bytes() : 0;
  out.samples = s.sampled_rows.load(std::memory_order_relaxed);
  out.batches = s.batches.load(std::memory_order_relaxed);
  out.redrawn = s.redrawn_rows.load(std::memory_order_relaxed);
  const auto held = [](const InternTable& t) {
    return t.frees() ? t.live() : static_cast<std::size_t>(t.size());
  };
  out.texts = held(s.tables.texts);
  out.stale_priorities = s.stale_priorities.load(std::memory_order_relaxed);
  out.sets = held(s.tables.sets);
  out.her_share = out.samples == 0
                      ? 0.0
                      : static_cast<double>(s.relabeled_rows.load(std::memory_order_relaxed)) /
                            static_cast<double>(out.samples);
  return out;
}

}  // namespace sacglam::replay
