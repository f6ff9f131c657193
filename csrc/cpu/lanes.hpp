// Vectors of kLanes floats, by the compiler's vector extension. Included by a level_<isa>.cpp,
// which defines SACGLAM_LANES. Everything here and in what includes it has internal linkage and
// uses no function of the standard library: an inline function compiled for AVX-512 here could
// otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <cstdint>

namespace {

constexpr int kLanes = SACGLAM_LANES;
typedef float Vec __attribute__((vector_size(SACGLAM_LANES * 4)));
typedef std::int32_t IntVec __attribute__((vector_size(SACGLAM_LANES * 4)));
typedef float UnalignedVec __attribute__((vector_size(SACGLAM_LANES * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }

inline IntVec lane_index() {
  IntVec index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}

// The first `count` lanes as they are, the others `other`.
inline Vec keep_first(Vec v, std::int32_t count, float other) {
  return lane_index() < count ? v : splat(other);
}

inline float sum(Vec v) {
  float parts[kLanes];
  store(parts, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  }
  return parts[0];
}

inline float largest(Vec v) {
  float parts[kLanes];
  store(parts, v);
  float most = parts[0];
  for (int i = 1; i < kLanes; ++i) most = parts[i] > most ? parts[i] : most;
  return most;
}

// exp(x) to about 2 units in the last place for x <= 88; 0 below -87.3, NaN of NaN.
inline Vec exp(Vec x) {
  const Vec magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec low = splat(-87.3F);
  const Vec clamped = x < low ? low : x;
  const Vec shifted = clamped * 1.44269504F + magic;
  const Vec n = shifted - magic;
  Vec r = clamped - n * 0.693359375F;  // ln 2 in two parts, the first exact in few bits
  r = r + n * 2.12194440e-4F;
  Vec p = splat(1.9875691500e-4F);  // Cephes' expf
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const IntVec exponent = (reinterpret_cast<IntVec>(shifted) << 23) + (127 << 23);
  const Vec result = p * reinterpret_cast<Vec>(exponent);
  return x < low ? Vec{} : result;
}

inline Vec sigmoid(Vec x) {
  const Vec limited = x < -87.0F ? splat(-87.0F) : x;
  return 1.0F / (1.0F + exp(-limited));
}

}  // namespace
