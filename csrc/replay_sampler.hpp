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
        now_(store),
        targets_(settings, now_) {
    if (store.priorities() != nullptr) priorities_.emplace(*store.priorities(), store.rows());
  }

  Sampler(const Sampler&) = delete;  // its parts refer to each other
  Sampler& operator=(const Sampler&) = delete;

  // Exactly floor or ceil of her_ratio * rows are relabeled, its mean over batches is exact, and
  // they are spread evenly over the batch. None when nothing can be relabeled.
  // The store must hold something; then it always will.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out) {
    out.restart(rows);
    const std::size_t share = relabeled_share(rows, seed, batch);
    // In groups: a row is a chain of some six reads, each of which misses the caches in a large
    // buffer.
    Attempt group[kGroup];
    std::size_t spread = 0;  // (i + 1) * share / rows, its remainder
    for (std::size_t i = 0; i < rows;) {
      std::size_t size = 0;
      for (; size < kGroup && i < rows; ++size, ++i) {
        spread += share;
        const bool relabel = spread >= rows;
        if (relabel) spread -= rows;
        Attempt& a = group[size];
        a.row = &out.rows[i];
        a.rng = CounterRng(seed, batch, i);
        a.ready = true;
        a.relabel = relabel && can_relabel();
        a.any_goal = a.relabel && draw_any_goal(a.rng);
      }
      draw_group(group, size);
      for (std::size_t j = 0; j < size; ++j) finish(group[j], out);
    }
  }

  // The same share of rows is offered to `hook`, which says what their goals are; they are drawn
  // as the plain ones are. A row that is overtaken while the hook runs is drawn anew, and plain.
  void plan(std::size_t rows, std::uint64_t seed, std::uint64_t batch, Plan& out,
            const GoalHook& hook) {
    out.restart(rows);
    const std::size_t share = share_of(rows, seed, batch);
    std::vector<Attempt> all(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      all[i].rng = CounterRng(seed, batch, i);
      all[i].row = &out.rows[i];
    }
    for (std::size_t i = 0; i < rows; i += kGroup) draw_group(&all[i], std::min(kGroup, rows - i));
    GoalRequest request;
    std::vector<std::size_t> offered;
    for (std::size_t i = 0; i < rows; ++i) {
      for (; !all[i].ready; ++out.redrawn) draw_again(all[i]);
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
        a.draw.first_event = targets_.first_event_from(a.draw.episode, a.draw.step);
        const std::size_t at = r * request.width;
        a.ready = targets_.target(a.draw, *a.row, answer.hits.empty() ? nullptr : &answer.hits[at],
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
  static constexpr std::uint64_t kEventsOfLine = 64 / sizeof(Event);

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

  enum class Chain { kRows, kHerRows, kPicks, kEpisodes, kHerEpisodes, kGoals };
  // Whether it begins with the link of the transition itself.
  static bool has_link(Chain chain) { return chain <= Chain::kPicks; }

  struct Attempt {
    CounterRng rng{0, 0, 0};
    bool relabel = false;
    bool any_goal = false;
    bool ready = true;  // sound as far as it goes
    Chain chain = Chain::kRows;
    std::uint64_t trail = 0;           // the position where its chain begins
    const GoalIndex* index = nullptr;  // of Chain::kGoals
    std::int32_t event_step = 0;
    Draw draw{};
    PlannedRow* row = nullptr;  // where it goes
  };

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

  // Everything but the prompts. All of a group take each step before any takes the next: what a
  // step needs was asked for by the one before, and is on its way while the other rows are worked
  // on. A step is false when a writer is seen to have overtaken it.
  template <bool (Sampler::*kStep)(Attempt&)>
  void each(Attempt* group, std::size_t size) {
    for (std::size_t j = 0; j < size; ++j) {
      if (group[j].ready) group[j].ready = (this->*kStep)(group[j]);
    }
  }
  [[gnu::flatten]] void draw_group(Attempt* group, std::size_t size) {
    each<&Sampler::begin>(group, size);
    each<&Sampler::find_episode>(group, size);
    each<&Sampler::find_step>(group, size);
    each<&Sampler::choose_goal>(group, size);
    each<&Sampler::compute>(group, size);
  }

  bool begin(Attempt& a) {
    // The last achievement may be evicted in the middle of a batch: the row is plain then.
    a.relabel = a.relabel && can_relabel();
    a.chain = chain_of(a);
    switch (a.chain) {
      case Chain::kRows:
        return draw_position(a.rng, now_.links, a.trail);
      case Chain::kHerRows:
      case Chain::kHerEpisodes:
        return draw_position(a.rng, now_.her_rows, a.trail);
      case Chain::kEpisodes:
        return draw_position(a.rng, now_.episodes, a.trail);
      case Chain::kPicks: {
        const auto pick = priorities_->pick(
            a.rng, a.relabel && !a.any_goal ? Priorities::kHer : Priorities::kAll);
        if (!pick) return false;
        a.trail = pick->position;
        a.draw.scale = pick->scale;
        now_.links.prefetch(a.trail);
        return true;
      }
      case Chain::kGoals: {
        a.index = draw_goal(a.rng);
        if (a.index == nullptr) return false;
        a.draw.goal = a.index->goal;
        return draw_position(a.rng, Ring<Achievement>::View(a.index->achievements), a.trail);
      }
    }
    return false;
  }

  bool find_episode(Attempt& a) {
    Link link{};
    switch (a.chain) {
      case Chain::kRows:
      case Chain::kPicks:
        if (!now_.links.read(a.trail, link)) return false;
        a.draw.id = now_.episode_of(link);
        break;
      case Chain::kHerRows:
      case Chain::kHerEpisodes:
        if (!now_.her_rows.read(a.trail, link)) return false;
        a.draw.id = now_.episode_of(link);
        break;
      case Chain::kEpisodes:
        a.draw.id = a.trail;
        break;
      case Chain::kGoals: {
        Achievement achievement;
        if (!Ring<Achievement>::View(a.index->achievements).read(a.trail, achievement)) {
          return false;
        }
        a.draw.id = achievement.episode;
        a.event_step = achievement.step;
        break;
      }
    }
    a.draw.first_event = link.first_event;
    now_.episodes.prefetch(a.draw.id);
    return true;
  }

  bool find_step(Attempt& a) {
    Episode& e = a.draw.episode;
    if (!now_.episodes.read(a.draw.id, e)) return false;
    std::uint64_t step = 0;
    switch (a.chain) {
      case Chain::kRows:
      case Chain::kPicks:
        step = a.trail - e.row_begin;
        break;
      case Chain::kHerRows:
        step = a.trail - e.her_begin;
        break;
      case Chain::kEpisodes:
        step = a.rng.below(static_cast<std::uint64_t>(e.length));
        break;
      case Chain::kHerEpisodes:
        step = a.rng.below(e.her_steps);
        break;
      case Chain::kGoals: {
        // Among how many steps the one before the achievement is drawn.
        const bool future = settings_.strategy == Strategy::kFuture;
        const auto among = static_cast<std::uint64_t>(future ? a.event_step + 1 : e.length);
        if (priorities_) {
          const auto pick = priorities_->pick(a.rng, e.row_begin, e.row_begin + among);
          if (!pick) return false;
          step = pick->position - e.row_begin;
          a.draw.scale = pick->scale;
        } else {
          step = a.rng.below(among);
        }
        break;
      }
    }
    a.draw.step = static_cast<std::int32_t>(step);
    if (a.relabel && has_link(a.chain)) {
      a.draw.first_event += e.event_begin;
      now_.events.prefetch(a.draw.first_event);
      now_.events.prefetch(a.draw.first_event + kEventsOfLine);
    } else if (a.relabel) {
      for (std::uint64_t i = 1; i < 4; ++i) {
        now_.events.prefetch(e.event_begin + e.events * i / 4);
      }
    }
    if (const auto shown = static_cast<std::uint64_t>(form_.history()); shown > 0) {
      now_.rows.prefetch(e.row_begin + step - std::min(step, shown));
    }
    now_.rows.prefetch(e.row_begin + step);
    now_.rows.prefetch(e.row_begin + step + static_cast<std::uint64_t>(settings_.n_step));
    return true;
  }

  bool choose_goal(Attempt& a) {
    Draw& draw = a.draw;
    const Episode& e = draw.episode;
    draw.relabeled = a.relabel;
    if (!a.relabel) {
      draw.goal = e.goal;
      return true;
    }
    if (!has_link(a.chain)) draw.first_event = targets_.first_event_from(e, draw.step);
    if (settings_.balance == Balance::kGoals) {
      if (!a.any_goal) return true;  // it came first
      const GoalIndex* index = draw_goal(a.rng);
      if (index == nullptr) return false;
      draw.goal = index->goal;
      return true;
    }
    std::uint64_t position = 0;
    if (a.any_goal) {
      if (!draw_position(a.rng, now_.events, position)) return false;
    } else {
      const std::uint64_t end = e.event_begin + e.events;
      std::uint64_t begin = e.event_begin;
      if (settings_.strategy == Strategy::kFuture) begin = draw.first_event;
      if (settings_.strategy == Strategy::kFinal) begin = end - e.final_events;
      if (begin >= end) return false;  // its events are being overwritten
      position = begin + a.rng.below(end - begin);
    }
    Event event;
    if (!now_.events.read(position, event)) return false;
    draw.goal = event.goal;
    return true;
  }

  bool compute(Attempt& a) {
    if (!targets_.target(a.draw, *a.row)) return false;
    const StoredSteps steps(now_, a.draw.episode);
    const std::int32_t t = a.draw.step;
    const std::int32_t last = t + a.row->steps;
    tables_.texts.prefetch(steps.observation(t));
    tables_.texts.prefetch(steps.observation(last));
    if (const std::int32_t shown = form_.history(); shown > 0) {
      for (std::int32_t i = std::max(t - shown, 0); i < last; ++i) {
        if (i < t || i >= last - shown) tables_.texts.prefetch(steps.observation(i));
      }
    }
    return true;
  }

  // The prompts, and the check that makes the row count.
  void finish(Attempt& a, Plan& out) {
    const std::size_t prompt_spans = out.prompt_spans.size();
    const std::size_t next_spans = out.next_spans.size();
    for (int attempt = 1; !a.ready || !add_row(a, out); ++attempt) {
      out.prompt_spans.cut(prompt_spans);
      out.next_spans.cut(next_spans);
      ++out.redrawn;
      if (attempt >= kAttempts) a.relabel = false;
      draw_again(a);
    }
  }

  // Of the contents as they are now: the head has moved on, perhaps by more than a lap.
  void draw_again(Attempt& a) {
    now_ = Contents(store_);
    if (priorities_) priorities_->renew();
    a.ready = true;
    draw_group(&a, 1);
  }

  template <class View>
  static bool draw_position(CounterRng& rng, const View& view, std::uint64_t& position) {
    if (view.head() == view.tail()) return false;
    position = view.head() + rng.below(view.tail() - view.head());
    view.prefetch(position);
    return true;
  }

  const GoalIndex* draw_goal(CounterRng& rng) const {
    const std::size_t count = store_.active_goals();
    return count == 0 ? nullptr : &store_.active_goal(static_cast<std::size_t>(rng.below(count)));
  }

  // False when the episode was evicted before all of it was read.
  bool add_row(Attempt& a, Plan& out) const {
    const StoredSteps steps(now_, a.draw.episode);
    PlannedRow& row = *a.row;
    const SpanEntry& goal = tables_.texts.entry(row.goal);
    row.prompt_tokens = form_.emit(tables_, steps, row.step, goal, out.prompt_spans);
    row.next_tokens = form_.emit(tables_, steps, row.step + row.steps, goal, out.next_spans);
    // A goal of another episode's may have been freed with that one; ids are not used again, so
    // that what is there now was there above.
    if (!goal.is_set()) return false;
    // One check covers rows, events and history: an episode is evicted as a whole.
    if (!now_.episodes.still_live(a.draw.id)) return false;
    out.prompt_tokens += row.prompt_tokens;
    out.next_tokens += row.next_tokens;
    out.relabeled += row.relabeled ? 1 : 0;
    if (priorities_) out.scales.push_back(a.draw.scale);
    return true;
  }

  const Settings& settings_;
  const Store& store_;
  const Tables& tables_;
  const Template& form_;
  Contents now_;
  const Targets targets_;
  std::optional<Priorities::View> priorities_;  // of prioritised sampling
};

}  // namespace sacglam::replay
