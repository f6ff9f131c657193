// RMS norm and gated activations, row by row. Included by a level_<isa>.cpp.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace {

using sacglam::cpu::Activation;
using sacglam::cpu::Gated;
using sacglam::cpu::RmsNorm;

// Calls with (offset, lanes in use): whole vectors first, then what is left.
template <class Visit>
inline void for_lanes(std::int64_t begin, std::int64_t end, const Visit& visit) {
  std::int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) visit(i, kLanes);
  if (i < end) visit(i, static_cast<int>(end - i));
}
inline Vec load_some(const float* p, int count) {
  if (count == kLanes) return load(p);
  Vec v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void store_some(float* p, Vec v, int count) {
  if (count == kLanes) return store(p, v);
  for (int i = 0; i < count; ++i) p[i] = v[i];
}

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

void rms_norm_forward(const RmsNorm& n, std::int64_t task) {
  const std::int64_t stop = least(n.rows, (task + 1) * RmsNorm::kRows);
  for (std::int64_t row = task * RmsNorm::kRows; row < stop; ++row) {
    const std::int64_t at = row * n.dim;
    const float* x = n.x + at;
    Vec squares = {};
    for_lanes(0, n.dim, [&](std::int64_t i, int count) {
      Vec v = load_some(x + i, count);
      if (n.add != nullptr) {
        v += load_some(n.add + at + i, count);
        store_some(n.sum + at + i, v, count);
      }
      squares += v * v;
    });
    const float mean = sum(squares) / static_cast<float>(n.dim);
    const float scale = 1.0F / __builtin_sqrtf(mean + n.eps);
    n.rstd[row] = scale;
    const float* from = n.add != nullptr ? n.sum + at : x;
    for_lanes(0, n.dim, [&](std::int64_t i, int count) {
      const Vec y = load_some(from + i, count) * scale * load_some(n.weight + i, count);
      store_some(n.y + at + i, y, count);
    });
  }
}

// dx = rstd (w dy - x rstd^2 mean(x w dy)) + dsum,  dw = sum over rows of dy x rstd
void rms_norm_backward(const RmsNorm& n, std::int64_t task) {
  const std::int64_t stop = least(n.rows, (task + 1) * RmsNorm::kRows);
  for (std::int64_t row = task * RmsNorm::kRows; row < stop; ++row) {
    const std::int64_t at = row * n.dim;
    Vec products = {};
    for_lanes(0, n.dim, [&](std::int64_t i, int count) {
      products += load_some(n.x + at + i, count) * load_some(n.grad + at + i, count) *
                  load_some(n.weight + i, count);
    });
    const float scale = n.rstd[row];
    const float back = scale * scale * sum(products) / static_cast<float>(n.dim);
    for_lanes(0, n.dim, [&](std::int64_t i, int count) {
      const Vec x = load_some(n.x + at + i, count);
      const Vec dy = load_some(n.grad + at + i, count);
      Vec dx = (load_some(n.weight + i, count) * dy - x * back) * scale;
      if (n.grad_sum != nullptr) dx += load_some(n.grad_sum + at + i, count);
      store_some(n.dx + at + i, dx, count);
      if (n.dweight != nullptr) {
        float* dw = n.dweight + task * n.dim + i;
        store_some(dw, load_some(dw, count) + dy * x * scale, count);
      }
    });
  }
}

constexpr float kGeluScale = 0.7978845608028654F;  // sqrt(2 / pi)
constexpr float kGeluCube = 0.044715F;

void gated_forward(const Gated& g, std::int64_t task) {
  const std::int64_t begin = task * Gated::kCount;
  for_lanes(begin, least(g.count, begin + Gated::kCount), [&](std::int64_t i, int count) {
    const Vec x = load_some(g.gate + i, count), up = load_some(g.up + i, count);
    // gelu_tanh(x) = x (1 + tanh(u)) / 2 = x sigmoid(2u)
    const Vec u =
        g.activation == Activation::kSilu ? x : 2.0F * kGeluScale * (x + kGeluCube * x * x * x);
    store_some(g.y + i, x * sigmoid(u) * up, count);
  });
}

void gated_backward(const Gated& g, std::int64_t task) {
  const std::int64_t begin = task * Gated::kCount;
  for_lanes(begin, least(g.count, begin + Gated::kCount), [&](std::int64_t i, int count) {
    const Vec x = load_some(g.gate + i, count), up = load_some(g.up + i, count);
    const Vec dy = load_some(g.grad + i, count);
    const bool silu = g.activation == Activation::kSilu;
    const Vec u = silu ? x : 2.0F * kGeluScale * (x + kGeluCube * x * x * x);
    const Vec du = silu ? splat(1.0F) : 2.0F * kGeluScale * (1.0F + 3.0F * kGeluCube * x * x);
    const Vec s = sigmoid(u);
    store_some(g.dup + i, dy * x * s, count);
    store_some(g.dgate + i, dy * up * (s + x * s * (1.0F - s) * du), count);
  });
}

}  // namespace
