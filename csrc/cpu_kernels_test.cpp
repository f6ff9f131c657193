// Every instruction set that this processor has, against plain loops in double precision.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.hpp"

namespace {

using sacglam::cpu::Activation;
using sacglam::cpu::Attention;
using sacglam::cpu::Gated;
using sacglam::cpu::Kernels;
using sacglam::cpu::RmsNorm;
using Floats = std::vector<float>;

std::mt19937 rng(7);

Floats noise(std::size_t n) {
  std::normal_distribution<float> normal;
  Floats out(n);
  for (float& x : out) x = normal(rng);
  return out;
}

void close(const Floats& found, const std::vector<double>& expected, const std::string& what) {
  double error = 0, size = 1e-12;
  for (std::size_t i = 0; i < found.size(); ++i) {
    error += std::pow(double{found[i]} - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  const double relative = std::sqrt(error / size);
  if (!(relative < 5e-6)) std::printf("%s: relative error %g\n", what.c_str(), relative);
  assert(relative < 5e-6);
}

// A forest of `sizes`, or pairs of segments of these sizes; branching at random.
struct Pack {
  std::vector<std::int32_t> start{0}, end, pos;
  explicit Pack(const std::vector<int>& sizes, double branch) {
    for (const int size : sizes) {
      const auto base = static_cast<std::int32_t>(end.size());
      std::vector<std::int32_t> path, parent;
      for (std::int32_t i = 0; i < size; ++i) {
        if (!path.empty() && std::uniform_real_distribution<>()(rng) < branch) {
          path.resize(1 + rng() % path.size());
        }
        parent.push_back(path.empty() ? -1 : path.back());
        pos.push_back(static_cast<std::int32_t>(path.size()));
        path.push_back(i);
        end.push_back(base + i + 1);
      }
      for (std::int32_t i = size - 1; i > 0; --i) {
        auto& up = end[static_cast<std::size_t>(base + parent[static_cast<std::size_t>(i)])];
        up = std::max(up, end[static_cast<std::size_t>(base + i)]);
      }
      start.push_back(static_cast<std::int32_t>(end.size()));
    }
  }
};

void check_attention(const Kernels& kernels, const std::vector<int>& sizes, bool segments,
                     bool with_bias, int heads, int kv_heads, int dim) {
  const Pack pack(sizes, 0.2);
  const auto tokens = pack.end.size();
  const auto h = static_cast<std::size_t>(heads), kv = static_cast<std::size_t>(kv_heads);
  const auto d = static_cast<std::size_t>(dim);
  const std::int32_t radius = 5;
  const std::size_t columns = 2 * radius + 1;
  const Floats q = noise(tokens * h * d), k = noise(tokens * kv * d), v = noise(tokens * kv * d);
  const Floats grad = noise(tokens * h * d), bias = noise(h * columns);
  Floats out(q.size()), lse(tokens * h), dq(q.size()), dk(k.size()), dv(v.size());
  Floats dbias((pack.start.size() - 1) * h * columns);
  Attention a{};
  a.q = q.data(), a.k = k.data(), a.v = v.data();
  a.q_token = a.grad_token = heads * dim, a.k_token = a.v_token = kv_heads * dim;
  a.q_head = a.k_head = a.v_head = a.grad_head = dim;
  a.out = out.data(), a.lse = lse.data();
  a.heads = heads, a.kv_heads = kv_heads, a.dim = dim;
  a.trees = static_cast<std::int32_t>(pack.start.size() - 1);
  a.scale = 0.3F;
  a.q_start = a.k_start = pack.start.data();
  a.end = segments ? nullptr : pack.end.data();
  a.q_pos = a.k_pos = pack.pos.data();
  if (with_bias) a.bias = bias.data(), a.radius = radius, a.dbias = dbias.data();
  a.grad = grad.data(), a.dq = dq.data(), a.dk = dk.data(), a.dv = dv.data();
  std::int64_t longest = 0;
  for (const int size : sizes) longest = std::max<std::int64_t>(longest, size);
  // Whatever the scratch holds must not matter.
  Floats scratch(static_cast<std::size_t>(kernels.attention_scratch(a, longest)),
                 std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t t = 0; t < a.tasks(); ++t) kernels.attention_forward(a, t, scratch.data());
  for (std::int64_t t = 0; t < a.tasks(); ++t) kernels.attention_backward(a, t, scratch.data());

  std::vector<double> e_out(q.size()), e_dq(q.size()), e_dk(k.size()), e_dv(v.size());
  std::vector<double> e_dbias(h * columns);
  for (std::size_t p = 0; p + 1 < pack.start.size(); ++p) {
    const auto begin = static_cast<std::size_t>(pack.start[p]);
    const auto stop = static_cast<std::size_t>(pack.start[p + 1]);
    for (std::size_t i = begin; i < stop; ++i) {
      for (std::size_t n = 0; n < h; ++n) {
        const std::size_t own = (i * h + n) * d;
        const auto key = [&](std::size_t j) { return (j * kv + n / (h / kv)) * d; };
        const auto column = [&](std::size_t j) {
          return n * columns + static_cast<std::size_t>(
                                   std::clamp(pack.pos[i] - pack.pos[j], -radius, radius) + radius);
        };
        std::vector<double> weight(tokens);
        double total = 0;
        for (std::size_t j = begin; j < stop; ++j) {
          if (!segments && (j > i || pack.end[j] <= static_cast<std::int32_t>(i))) continue;
          double s = 0;
          for (std::size_t c = 0; c < d; ++c) s += double{q[own + c]} * k[key(j) + c];
          weight[j] = std::exp(0.3F * s + (with_bias ? double{bias[column(j)]} : 0.0));
          total += weight[j];
        }
        double delta = 0;
        for (std::size_t j = begin; j < stop; ++j) {
          weight[j] /= total;
          for (std::size_t c = 0; c < d; ++c) e_out[own + c] += weight[j] * v[key(j) + c];
        }
        for (std::size_t c = 0; c < d; ++c) delta += e_out[own + c] * grad[own + c];
        for (std::size_t j = begin; j < stop; ++j) {
          double dp = 0;
          for (std::size_t c = 0; c < d; ++c) dp += double{grad[own + c]} * v[key(j) + c];
          const double ds = weight[j] * (dp - delta);
          if (with_bias) e_dbias[column(j)] += ds;
          for (std::size_t c = 0; c < d; ++c) {
            e_dq[own + c] += 0.3F * ds * k[key(j) + c];
            e_dk[key(j) + c] += 0.3F * ds * q[own + c];
            e_dv[key(j) + c] += weight[j] * grad[own + c];
          }
        }
      }
    }
  }
  const std::string name = std::string(kernels.name) + " attention, dim " + std::to_string(dim);
  close(out, e_out, name + ", out");
  close(dq, e_dq, name + ", dq");
  close(dk, e_dk, name + ", dk");
  close(dv, e_dv, name + ", dv");
  if (with_bias) {
    Floats sum(h * columns);
    for (std::size_t i = 0; i < dbias.size(); ++i) sum[i % sum.size()] += dbias[i];
    close(sum, e_dbias, name + ", dbias");
  }
}

void check_pointwise(const Kernels& kernels, std::int64_t rows, std::int32_t dim) {
  const auto n = static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim);
  const Floats x = noise(n), weight = noise(static_cast<std::size_t>(dim)), up = noise(n);
  Floats y(n), rstd(static_cast<std::size_t>(rows));
  RmsNorm norm{};
  norm.x = x.data(), norm.weight = weight.data(), norm.y = y.data(), norm.rstd = rstd.data();
  norm.rows = rows, norm.dim = dim, norm.eps = 1e-6F;
  for (std::int64_t t = 0; t < norm.tasks(); ++t) kernels.rms_norm_forward(norm, t);
  std::vector<double> expected(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t width = weight.size(), row = i / width;
    double mean = 0;
    for (std::size_t c = 0; c < width; ++c) mean += std::pow(double{x[row * width + c]}, 2);
    mean /= static_cast<double>(width);
    expected[i] = double{weight[i % width]} * x[i] / std::sqrt(mean + 1e-6);
  }
  close(y, expected, std::string(kernels.name) + " norm");
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    Gated gated{};
    gated.gate = x.data(), gated.up = up.data(), gated.y = y.data();
    gated.count = static_cast<std::int64_t>(n), gated.activation = activation;
    for (std::int64_t t = 0; t < gated.tasks(); ++t) kernels.gated_forward(gated, t);
    for (std::size_t i = 0; i < n; ++i) {
      const double g = x[i], u = 0.7978845608028654 * (g + 0.044715 * g * g * g);
      const double act =
          activation == Activation::kSilu ? g / (1 + std::exp(-g)) : 0.5 * g * (1 + std::tanh(u));
      expected[i] = act * up[i];
    }
    close(y, expected, std::string(kernels.name) + " gate");
  }
}

void check(const Kernels& kernels) {
  for (const bool segments : {false, true}) {
    for (const bool with_bias : {false, true}) {
      check_attention(kernels, {1, 23, 64, 2, 17}, segments, with_bias, 4, 2, 16);
      check_attention(kernels, {40, 5}, segments, with_bias, 1, 1, 7);
      check_attention(kernels, {33}, segments, with_bias, 2, 1, 64);
    }
  }
  check_pointwise(kernels, 130, 20);
  check_pointwise(kernels, 1, 3);
  std::printf("%s: passed\n", kernels.name);
}

}  // namespace

int main() {
  check(sacglam::cpu::kBaseline);
#ifdef SACGLAM_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) check(sacglam::cpu::kAvx2);
  if (__builtin_cpu_supports("avx512f")) check(sacglam::cpu::kAvx512);
#endif
  return 0;
}
