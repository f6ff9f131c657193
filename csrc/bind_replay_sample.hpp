// Batches as tuples of arrays, drawn now or ahead, and a user's relabeling as a hook.
#pragma once

#include <array>

#include "bind_replay_convert.hpp"
#include "replay_prefetch.hpp"

namespace sacglam {

constexpr const char* kFields[] = {"prompt_ids",
                                   "prompt_offsets",
                                   "candidates",
                                   "next_prompt_ids",
                                   "next_prompt_offsets",
                                   "next_candidates",
                                   "action",
                                   "n_step_return",
                                   "discount",
                                   "weight",
                                   "steps",
                                   "goal",
                                   "relabeled",
                                   "episode",
                                   "step",
                                   "key"};

// A caller's arrays to write to.
struct GivenArrays {
  BatchArrays arrays{};

  GivenArrays(py::tuple t, std::size_t rows) : fields_(std::move(t)), rows_(rows) {
    if (fields_.size() != std::size(kFields)) throw ReplayFault("out must have every field");
    take(arrays.prompt_ids, 0, 0);
    take(arrays.prompt_offsets, 1, rows + 1);
    take(arrays.candidates, 2, rows);
    take(arrays.next_prompt_ids, 3, 0);
    take(arrays.next_prompt_offsets, 4, rows + 1);
    take(arrays.next_candidates, 5, rows);
    take(arrays.action, 6, rows);
    take(arrays.n_step_return, 7, rows);
    take(arrays.discount, 8, rows);
    take(arrays.weight, 9, rows);
    take(arrays.steps, 10, rows);
    take(arrays.goal, 11, rows);
    take(arrays.relabeled, 12, rows);
    take(arrays.episode, 13, rows);
    take(arrays.step, 14, rows);
    take(arrays.key, 15, rows);
  }

  void require_room(std::size_t prompt_tokens, std::size_t next_tokens) const {
    require(0, prompt_tokens);
    require(3, next_tokens);
  }

  // The batch's part of each.
  py::tuple used(std::size_t prompt_tokens, std::size_t next_tokens) const {
    py::tuple out(std::size(kFields));
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool offsets = i == 1 || i == 4;
      const std::size_t need = i == 0   ? prompt_tokens
                               : i == 3 ? next_tokens
                                        : rows_ + (offsets ? 1 : 0);
      py::object array = fields_[i];
      if (sizes_[i] != need) array = array[py::slice(0, static_cast<py::ssize_t>(need), 1)];
      out[i] = std::move(array);
    }
    return out;
  }

 private:
  template <class T>
  void take(T*& data, std::size_t field, std::size_t need) {
    const py::object array = fields_[field];
    data = writable<T>(array, kFields[field], need);
    sizes_[field] = static_cast<std::size_t>(py::detail::array_proxy(array.ptr())->dimensions[0]);
  }
  void require(std::size_t field, std::size_t need) const {
    if (need > sizes_[field]) {
      throw ReplayFault(std::string("out.") + kFields[field] + " holds " +
                        std::to_string(sizes_[field]) + " token ids, this batch needs " +
                        std::to_string(need) +
                        "; give a larger array, the same batch is drawn again");
    }
  }

  py::tuple fields_;
  std::size_t rows_;
  std::array<std::size_t, std::size(kFields)> sizes_{};
};

// The memory of a batch as new numpy arrays; a field keeps all other fields of the rows alive.
inline py::tuple to_arrays(OwnedBatch batch) {
  const BatchArrays& a = batch.arrays;
  const auto n = static_cast<py::ssize_t>(batch.rows);
  const py::capsule owner(batch.fields.get(), [](void* p) { delete[] static_cast<std::byte*>(p); });
  batch.fields.release();
  const auto view = [&](const auto* data, py::ssize_t size) {
    return py::array_t<std::remove_cvref_t<decltype(*data)>>(size, data, owner);
  };
  return py::make_tuple(
      adopt(std::move(batch.prompt), batch.prompt_tokens), view(a.prompt_offsets, n + 1),
      view(a.candidates, n), adopt(std::move(batch.next), batch.next_tokens),
      view(a.next_prompt_offsets, n + 1), view(a.next_candidates, n), view(a.action, n),
      view(a.n_step_return, n), view(a.discount, n), view(a.weight, n), view(a.steps, n),
      view(a.goal, n), view(a.relabeled, n), view(a.episode, n), view(a.step, n), view(a.key, n));
}

// `ask(width, arrays...)` returns goals, hits or None, rewards or None.
inline GoalHook to_hook(const py::object& ask) {
  if (ask.is_none()) return nullptr;
  return [&ask](const GoalRequest& r) {
    const py::gil_scoped_acquire acquire;
    const py::array observations = to_numpy(r.observations)
                                       .reshape({static_cast<py::ssize_t>(r.row.size()),
                                                 static_cast<py::ssize_t>(r.width + 1)});
    const auto result =
        ask(to_numpy(r.row), to_numpy(r.episode), to_numpy(r.step), to_numpy(r.length),
            to_numpy(r.goal), observations, to_numpy(r.achieved_offsets), to_numpy(r.achieved),
            to_numpy(r.achieved_steps))
            .cast<py::tuple>();
    GoalAnswer answer;
    answer.goal = to_ints<std::int32_t>(result[0], "goals");
    if (!result[1].is_none()) {
      const auto hits = result[1].cast<py::array_t<std::uint8_t, py::array::c_style>>();
      answer.hits.assign(hits.data(), hits.data() + hits.size());
    }
    if (!result[2].is_none()) answer.rewards = to_floats(result[2], "rewards");
    return answer;
  };
}

inline std::size_t to_rows(const py::object& batch_size) {
  return static_cast<std::size_t>(to_int(batch_size, "batch_size", 1, std::int64_t{1} << 24));
}

// Returns the fields of `count` batches, each in kFields' order.
inline py::list sample_many(ReplayBuffer& buffer, const py::object& count,
                            const py::object& batch_size, double beta, const py::object& ask) {
  const auto batches = static_cast<std::size_t>(to_int(count, "count", 1, 1 << 20));
  const std::size_t rows = to_rows(batch_size);
  const GoalHook hook = to_hook(ask);
  std::vector<OwnedBatch> drawn(batches);
  // A hook may sample itself, in this thread: nothing is shared with that.
  thread_local Plan scratch;
  Plan own;
  {
    const py::gil_scoped_release release;
    for (OwnedBatch& batch : drawn) {
      buffer.sample(
          rows, beta, hook ? own : scratch, [&](const Plan& plan) { return batch.make_room(plan); },
          hook);
    }
  }
  py::list out;
  for (OwnedBatch& batch : drawn) out.append(to_arrays(std::move(batch)));
  return out;
}

// With `out`, the fields are views on its arrays.
inline py::tuple sample(ReplayBuffer& buffer, const py::object& batch_size, const py::object& out,
                        double beta, const py::object& ask) {
  if (out.is_none()) return sample_many(buffer, py::int_(1), batch_size, beta, ask)[0];
  const std::size_t rows = to_rows(batch_size);
  const auto given = out.cast<py::tuple>();
  const GivenArrays to(given, rows);
  const GoalHook hook = to_hook(ask);
  std::size_t tokens = 0, next_tokens = 0;
  thread_local Plan scratch;
  Plan own;
  {
    const py::gil_scoped_release release;
    buffer.sample(
        rows, beta, hook ? own : scratch,
        [&](const Plan& plan) {
          tokens = plan.prompt_tokens;
          next_tokens = plan.next_tokens;
          to.require_room(tokens, next_tokens);
          return to.arrays;
        },
        hook);
  }
  return to.used(tokens, next_tokens);
}

// The same from batches that are drawn ahead.
inline py::tuple sample_ahead(Prefetcher& ahead, const py::object& batch_size,
                              const py::object& out, double beta) {
  const std::size_t rows = to_rows(batch_size);
  OwnedBatch batch;
  if (out.is_none()) {
    {
      const py::gil_scoped_release release;
      batch = ahead.next(rows, beta);
    }
    return to_arrays(std::move(batch));
  }
  const auto given = out.cast<py::tuple>();
  const GivenArrays to(given, rows);
  {
    const py::gil_scoped_release release;
    batch = ahead.next(rows, beta, [&](const OwnedBatch& ready) {
      to.require_room(ready.prompt_tokens, ready.next_tokens);
    });
    batch.copy_to(to.arrays);
  }
  return to.used(batch.prompt_tokens, batch.next_tokens);
}

}  // namespace sacglam
