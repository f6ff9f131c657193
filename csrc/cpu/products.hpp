// Products of a few rows with the keys (or values) of a tree. Included by a level_<isa>.cpp.
//
// Each loads what it needs of kBlock rows by kColumns vectors into registers, which are enough sums
// under way to hide what one addition takes, and few enough to stay there.
#pragma once

#include <cstdint>

#include "lanes.hpp"

namespace {

constexpr int kBlock = 4;
constexpr int kColumns = kLanes == 16 ? 4 : 2;

inline std::int64_t round_up(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline std::int64_t row_floats(std::int64_t dim) {  // a padded row: a power of two of vectors
  std::int64_t vectors = 1;
  while (vectors * kLanes < dim) vectors *= 2;
  return vectors * kLanes;
}

template <int V>  // vectors a row
struct PaddedRows {
  static constexpr int kRow = V * kLanes;
  static constexpr int kPart = V < kColumns ? V : kColumns;  // vectors of a row at a time

  // use(b, j, rows[b] . keys[j ...]) for kBlock rows b of `dim` floats and the keys in [0, count),
  // a vector of them at a time; by_dim holds a key's dimension d at d * stride.
  template <class Use>
  static void dots(float* const* rows, const float* by_dim, int dim, std::int64_t stride,
                   std::int64_t count, const Use& use) {
    std::int64_t j = 0;
    for (; j + kColumns * kLanes <= count; j += kColumns * kLanes) {
      dots_at<kColumns>(rows, by_dim + j, dim, stride, j, use);
    }
    for (; j < count; j += kLanes) dots_at<1>(rows, by_dim + j, dim, stride, j, use);
  }

  // to[b] = sum over keys j of weights[b][j] keys[j], for kBlock rows b.
  static void gather(float* const* to, float* const* weights, const float* keys,
                     std::int64_t count) {
    for (int part = 0; part < V; part += kPart) {
      Vec sums[kBlock][kPart] = {};
      for (std::int64_t j = 0; j < count; ++j) {
        for (int c = 0; c < kPart; ++c) {
          const Vec x = load(keys + j * kRow + (part + c) * kLanes);
          for (int b = 0; b < kBlock; ++b) sums[b][c] += x * weights[b][j];
        }
      }
      for (int b = 0; b < kBlock; ++b) {
        for (int c = 0; c < kPart; ++c) store(to[b] + (part + c) * kLanes, sums[b][c]);
      }
    }
  }

  // to[j] += sum over rows b of weights[b][j] rows[b], for `count` keys j, a multiple of kBlock.
  static void scatter(float* to, float* const* weights, float* const* rows, int row_count,
                      std::int64_t count) {
    for (std::int64_t j = 0; j < count; j += kBlock) {
      for (int part = 0; part < V; part += kPart) {
        float* const at = to + j * kRow + part * kLanes;
        Vec sums[kBlock][kPart];
        for (int k = 0; k < kBlock; ++k) {
          for (int c = 0; c < kPart; ++c) sums[k][c] = load(at + k * kRow + c * kLanes);
        }
        for (int b = 0; b < row_count; ++b) {
          for (int c = 0; c < kPart; ++c) {
            const Vec x = load(rows[b] + (part + c) * kLanes);
            for (int k = 0; k < kBlock; ++k) sums[k][c] += x * weights[b][j + k];
          }
        }
        for (int k = 0; k < kBlock; ++k) {
          for (int c = 0; c < kPart; ++c) store(at + k * kRow + c * kLanes, sums[k][c]);
        }
      }
    }
  }

  static void add_row(float* to, const float* row, float weight) {
    for (int c = 0; c < V; ++c) {
      store(to + c * kLanes, load(to + c * kLanes) + load(row + c * kLanes) * weight);
    }
  }

  static float dot(const float* x, const float* y) {
    Vec total = {};
    for (int c = 0; c < V; ++c) total += load(x + c * kLanes) * load(y + c * kLanes);
    return sum(total);
  }

 private:
  template <int columns, class Use>
  static void dots_at(float* const* rows, const float* key, int dim, std::int64_t stride,
                      std::int64_t j, const Use& use) {
    Vec s[kBlock][columns] = {};
    for (int d = 0; d < dim; ++d) {
      for (int c = 0; c < columns; ++c) {
        const Vec k = load(key + d * stride + c * kLanes);
        for (int b = 0; b < kBlock; ++b) s[b][c] += k * rows[b][d];
      }
    }
    for (int b = 0; b < kBlock; ++b) {
      for (int c = 0; c < columns; ++c) use(b, j + c * kLanes, s[b][c]);
    }
  }
};

}  // namespace
