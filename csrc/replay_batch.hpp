// Where the rows of a batch go, and how they get there.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "replay_plan.hpp"

namespace sacglam::replay {

// Where a batch of B rows goes; offsets have B + 1 entries.
struct BatchArrays {
  std::int32_t* prompt_ids;
  std::int64_t* prompt_offsets;
  std::int32_t* candidates;
  std::int32_t* next_prompt_ids;
  std::int64_t* next_prompt_offsets;
  std::int32_t* next_candidates;
  std::int32_t* action;
  float* n_step_return;
  float* discount;
  float* weight;
  std::int32_t* steps;
  std::int32_t* goal;
  std::uint8_t* relabeled;
  std::int64_t* episode;
  std::int32_t* step;
  std::int64_t* key;
};

// Copies a text by whole blocks, if there is room for what is written too much: a text owns the
// memory up to the next block.
template <class Id>
[[gnu::always_inline]] inline bool copy_blocks(const Id* from, std::size_t size, std::int32_t* to,
                                               std::size_t room) {
  constexpr std::size_t kBlock = Span::kUnit / sizeof(Id);
  const std::size_t padded = (size + kBlock - 1) / kBlock * kBlock;
  if (padded > room) return false;
  for (std::size_t b = 0; b < padded; b += kBlock) {
    for (std::size_t i = b; i < b + kBlock; ++i) to[i] = from[i];
  }
  return true;
}

// Copies tokens. What is written too much of a text is overwritten by the next one.
[[gnu::always_inline]] inline void gather_inline(const Spans& spans, std::size_t tokens,
                                                 std::int32_t* to) {
  // The text that comes so many texts later that 1024 tokens lie between.
  const std::size_t ahead = std::clamp<std::size_t>(1024 * spans.size() / (tokens + 1), 8, 48);
  constexpr std::size_t kShort = 32;  // ids of four bytes; memcpy() copies more of them faster
  std::size_t left = tokens;
  const Span* const end = spans.end();
  for (const Span* at = spans.begin(); at != end; ++at) {
    if (static_cast<std::size_t>(end - at) > ahead) at[ahead].prefetch();
    const Span span = *at;
    const bool copied =
        span.narrow() ? copy_blocks(span.two_bytes(), span.size, to, left)
                      : span.size <= kShort && copy_blocks(span.four_bytes(), span.size, to, left);
    if (!copied) span.copy_to(to);
    to += span.size;
    left -= span.size;
  }
}
using Gather = void (*)(const Spans& spans, std::size_t tokens, std::int32_t* to);
inline void gather_anywhere(const Spans& spans, std::size_t tokens, std::int32_t* to) {
  gather_inline(spans, tokens, to);
}
#ifdef __x86_64__
[[gnu::target("avx2")]] inline void gather_avx2(const Spans& spans, std::size_t tokens,
                                                std::int32_t* to) {
  gather_inline(spans, tokens, to);
}
inline Gather best_gather() {
  return __builtin_cpu_supports("avx2") ? gather_avx2 : gather_anywhere;
}
#else
inline Gather best_gather() { return gather_anywhere; }
#endif
inline void gather(const Spans& spans, std::size_t tokens, std::int32_t* to) {
  static const Gather best = best_gather();
  best(spans, tokens, to);
}

// A row's key names its transition for ever: its position in the ring of rows, and the epoch of
// the contents. It is refused once the row is gone, or others were loaded.
constexpr unsigned kPositionBits = 48;

inline void fill(const Plan& plan, std::uint64_t epoch, const BatchArrays& to) {
  gather(plan.prompt_spans, plan.prompt_tokens, to.prompt_ids);
  gather(plan.next_spans, plan.next_tokens, to.next_prompt_ids);
  std::int64_t prompt_end = 0;
  std::int64_t next_end = 0;
  to.prompt_offsets[0] = to.next_prompt_offsets[0] = 0;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const PlannedRow& row = plan.rows[i];
    prompt_end += static_cast<std::int64_t>(row.prompt_tokens);
    next_end += static_cast<std::int64_t>(row.next_tokens);
    to.prompt_offsets[i + 1] = prompt_end;
    to.next_prompt_offsets[i + 1] = next_end;
    to.candidates[i] = row.candidates;
    to.next_candidates[i] = row.next_candidates;
    to.action[i] = row.action;
    to.n_step_return[i] = row.n_step_return;
    to.discount[i] = row.discount;
    to.weight[i] = plan.weights.empty() ? 1.0F : static_cast<float>(plan.weights[i]);
    to.steps[i] = row.steps;
    to.goal[i] = row.goal;
    to.relabeled[i] = row.relabeled ? 1 : 0;
    to.episode[i] = static_cast<std::int64_t>(row.episode);
    to.step[i] = row.step;
    to.key[i] = static_cast<std::int64_t>((epoch << kPositionBits) | row.position);
  }
}

// A batch in memory of its own: one piece for all fields of its rows, one for each prompt.
struct OwnedBatch {
  std::size_t rows = 0;
  std::size_t prompt_tokens = 0;
  std::size_t next_tokens = 0;
  std::unique_ptr<std::byte[]> fields;
  std::unique_ptr<std::int32_t[]> prompt;
  std::unique_ptr<std::int32_t[]> next;
  BatchArrays arrays{};

  // What sample() calls `place`.
  const BatchArrays& make_room(const Plan& plan) {
    rows = plan.rows.size();
    prompt_tokens = plan.prompt_tokens;
    next_tokens = plan.next_tokens;
    prompt = std::make_unique_for_overwrite<std::int32_t[]>(prompt_tokens);
    next = std::make_unique_for_overwrite<std::int32_t[]>(next_tokens);
    std::size_t bytes = 0;
    each([&](auto*&, std::size_t size, std::size_t unit) { bytes += aligned(size * unit); });
    fields = std::make_unique_for_overwrite<std::byte[]>(bytes);
    std::byte* at = fields.get();
    each([&](auto*& array, std::size_t size, std::size_t unit) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += aligned(size * unit);
    });
    arrays.prompt_ids = prompt.get();
    arrays.next_prompt_ids = next.get();
    return arrays;
  }
  void copy_to(const BatchArrays& to) const {
    std::memcpy(to.prompt_ids, prompt.get(), prompt_tokens * sizeof(std::int32_t));
    std::memcpy(to.next_prompt_ids, next.get(), next_tokens * sizeof(std::int32_t));
    OwnedBatch other;
    other.rows = rows;
    other.arrays = to;
    const std::byte* at = fields.get();
    other.each([&](auto*& array, std::size_t size, std::size_t unit) {
      std::memcpy(array, at, size * unit);
      at += aligned(size * unit);
    });
  }

 private:
  // In one order: every field of the rows, how many entries it has, and their bytes.
  template <class Do>
  void each(const Do& act) {
    BatchArrays& a = arrays;
    const std::size_t n = rows;
    act(a.prompt_offsets, n + 1, sizeof(std::int64_t));
    act(a.next_prompt_offsets, n + 1, sizeof(std::int64_t));
    act(a.episode, n, sizeof(std::int64_t));
    act(a.key, n, sizeof(std::int64_t));
    act(a.candidates, n, sizeof(std::int32_t));
    act(a.next_candidates, n, sizeof(std::int32_t));
    act(a.action, n, sizeof(std::int32_t));
    act(a.n_step_return, n, sizeof(float));
    act(a.discount, n, sizeof(float));
    act(a.weight, n, sizeof(float));
    act(a.steps, n, sizeof(std::int32_t));
    act(a.goal, n, sizeof(std::int32_t));
    act(a.step, n, sizeof(std::int32_t));
    act(a.relabeled, n, sizeof(std::uint8_t));
  }
  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
};

}  // namespace sacglam::replay
