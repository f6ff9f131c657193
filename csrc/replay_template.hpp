// The prompt's template: which texts, in which order, make the prompt of a step.
#pragma once

#include <algorithm>
#include <vector>

#include "replay_tables.hpp"

namespace sacglam::replay {

struct Op {
  enum Kind : std::int32_t { kLiteral, kGoal, kObservation, kActions, kHistory, kAction };
  Kind kind;
  std::int32_t arg = 0;       // kLiteral: text id; kActions: separator's text id; kHistory: steps
  std::vector<Op> body = {};  // kHistory alone
};

// Of views: texts that another process has interned become known here.
inline void adopt_literals(const std::vector<Op>& ops, Tables& tables) {
  for (const Op& op : ops) {
    if (op.kind == Op::kLiteral || op.kind == Op::kActions) tables.adopt_text(op.arg);
    adopt_literals(op.body, tables);
  }
}

class Template {
 public:
  Template() = default;

  Template(std::vector<Op> ops, const Tables& tables) : ops_(std::move(ops)) {
    if (ops_.empty()) throw ReplayFault("a template needs at least one part");
    for (const Op& op : ops_) {
      switch (op.kind) {
        case Op::kLiteral:
          tables.require_text(op.arg, "template literal");
          break;
        case Op::kActions:
          tables.require_text(op.arg, "template action separator");
          break;
        case Op::kHistory:
          check_history(op, tables);
          break;
        case Op::kAction:
          throw ReplayFault("a template may use \"action\" inside \"history\" alone");
        default:
          break;
      }
    }
  }

  bool empty() const { return ops_.empty(); }
  const std::vector<Op>& ops() const { return ops_; }

  // What emit() returns for a step that is being overwritten: its action is not in its set.
  static constexpr std::size_t kTorn = ~std::size_t{0};

  // Appends the spans of the prompt at step t, returns its tokens. `steps` has observation(i),
  // candidates(i), action(i) (the index chosen at step i); i <= t, for action i < t.
  template <class Steps>
  std::size_t emit(const Tables& tables, const Steps& steps, std::int32_t t, std::int32_t goal,
                   std::vector<Span>& out) const {
    std::size_t tokens = 0;
    const auto put = [&](std::int32_t text) {
      const Span span = tables.texts[text];
      if (span.size == 0) return;  // or freed: then the row, or the goal, is gone
      out.push_back(span);
      tokens += span.size;
    };
    for (const Op& op : ops_) {
      std::int32_t text = op.arg;
      switch (op.kind) {
        case Op::kLiteral:
          break;
        case Op::kGoal:
          text = goal;
          break;
        case Op::kObservation:
          text = steps.observation(t);
          break;
        case Op::kActions:
          put_actions(tables, op, steps.candidates(t), put);
          continue;
        case Op::kHistory:
          if (!put_history(tables, op, steps, t, put)) return kTorn;
          continue;
        case Op::kAction:
          continue;  // refused on construction
      }
      put(text);
    }
    return tokens;
  }

 private:
  template <class Put>
  static void put_actions(const Tables& tables, const Op& op, std::int32_t candidates,
                          const Put& put) {
    const Span set = tables.sets[candidates];
    for (std::size_t i = 0; i < set.size; ++i) {
      if (i > 0) put(op.arg);
      put(set[i]);
    }
  }

  // False for a step that is being overwritten.
  template <class Steps, class Put>
  static bool put_history(const Tables& tables, const Op& op, const Steps& steps, std::int32_t t,
                          const Put& put) {
    for (std::int32_t i = t - std::min(op.arg, t); i < t; ++i) {
      for (const Op& part : op.body) {
        std::int32_t text = part.arg;
        if (part.kind == Op::kObservation) {
          text = steps.observation(i);
        } else if (part.kind == Op::kAction) {
          const Span set = tables.sets[steps.candidates(i)];
          const auto chosen = static_cast<std::size_t>(steps.action(i));
          if (chosen >= set.size) return false;
          text = set[chosen];
        }
        put(text);
      }
    }
    return true;
  }

  static void check_history(const Op& op, const Tables& tables) {
    if (op.arg < 1) {
      throw ReplayFault("template history: the number of steps must be at least 1, got " +
                        std::to_string(op.arg));
    }
    if (op.body.empty()) throw ReplayFault("template history: its list of parts is empty");
    for (const Op& part : op.body) {
      if (part.kind == Op::kLiteral) {
        tables.require_text(part.arg, "template history literal");
      } else if (part.kind != Op::kObservation && part.kind != Op::kAction) {
        throw ReplayFault(
            "template history: its parts are \"literal\", \"observation\" and \"action\"");
      }
    }
  }

  std::vector<Op> ops_;
};

}  // namespace sacglam::replay
