// What the CPU kernels take, and the table of them that fits this processor.
//
// Each level_<isa>.cpp compiles the same code for one instruction set; `kernels()` picks the best
// that the processor has. Kernels work on one task at a time, so that whoever calls them decides
// on the threads; a task writes places of its own, so that the number of threads changes no bit.
#pragma once

#include <cstdint>

namespace sacglam::cpu {

// Attention over P trees (or pairs of segments) of packed tokens; formulas in
// kernels/forest_attention.py. Strides count floats; the last dimension is dense.
struct Attention {
  const float *q, *k, *v;  // [Tq, H, D], [Tk, Hkv, D] twice, by strides
  std::int64_t q_token, q_head, k_token, k_head, v_token, v_head;
  float* out;  // [Tq, H, D]; read by the backward pass
  float* lse;  // [Tq, H]
  std::int32_t heads, kv_heads, dim, trees;
  float scale;
  const std::int32_t *q_start, *k_start;  // [P + 1]
  const std::int32_t* end;                // [Tk] one past a token's last descendant; null: segments
  const std::int32_t* q_node;  // [Tq] the token that a query is, rising; null: query i is token i
  const float* bias;           // [H, 2R + 1] by query position minus key position; null: none
  std::int32_t radius;         // R
  const std::int32_t *q_pos, *k_pos;  // [Tq], [Tk], with a bias
  const float *cos, *sin;             // [Tk, D] rotary embedding by token; null: none
  // The backward pass.
  const float* grad;  // [Tq, H, D], by strides
  std::int64_t grad_token, grad_head;
  float *dq, *dk, *dv;  // [Tq, H, D], [Tk, Hkv, D] twice
  float* dbias;         // [P, H, 2R + 1], zeros: one part a tree; null: not wanted

  std::int64_t tasks() const { return std::int64_t{trees} * kv_heads; }
};

// y = w x / sqrt(mean(x^2) + eps), row by row, where x may first receive `add`.
struct RmsNorm {
  const float *x, *add, *weight;  // [T, D], [T, D] or null, [D]
  float *sum, *y, *rstd;          // [T, D] (with add), [T, D], [T]
  std::int64_t rows;
  std::int32_t dim;
  float eps;
  // The backward pass reads x + add from `x`.
  const float *grad, *grad_sum;              // of y; of the sum, or null
  float *dx, *dweight;                       // [T, D]; [tasks, D] parts, or null
  static constexpr std::int64_t kRows = 64;  // a task
  std::int64_t tasks() const { return (rows + kRows - 1) / kRows; }
};

enum class Activation : std::int32_t { kSilu, kGeluTanh };

// y = act(gate) * up.
struct Gated {
  const float *gate, *up;
  float* y;
  const float* grad;
  float *dgate, *dup;
  std::int64_t count;
  Activation activation;
  static constexpr std::int64_t kCount = 8192;  // a task
  std::int64_t tasks() const { return (count + kCount - 1) / kCount; }
};

struct Kernels {
  const char* name;
  std::int32_t max_head_dim;
  // Floats of scratch that one task of attention needs; longest: keys of the longest tree.
  std::int64_t (*attention_scratch)(const Attention&, std::int64_t longest);
  void (*attention_forward)(const Attention&, std::int64_t task, float* scratch);
  void (*attention_backward)(const Attention&, std::int64_t task, float* scratch);
  void (*rms_norm_forward)(const RmsNorm&, std::int64_t task);
  void (*rms_norm_backward)(const RmsNorm&, std::int64_t task);
  void (*gated_forward)(const Gated&, std::int64_t task);
  void (*gated_backward)(const Gated&, std::int64_t task);
};

extern const Kernels kBaseline;
#ifdef SACGLAM_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The best that this processor runs.
inline const Kernels& kernels() {
#ifdef SACGLAM_X86
  static const Kernels& best =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma") ? kAvx512
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")  ? kAvx2
                                                                         : kBaseline;
  return best;
#else
  return kBaseline;
#endif
}

}  // namespace sacglam::cpu
