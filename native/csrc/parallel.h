// Loops over chunks of rows, on all cores of the Turn.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime.h"

namespace resnet_jax {

// body(i) for i in [0, count), split into one contiguous range per thread. body must not throw.
template <typename Body>
void Parallel(const Turn& turn, int64_t count, Body body) {
#pragma omp parallel for schedule(static) num_threads(turn.threads())
  for (int64_t i = 0; i < count; ++i) body(i);
}

// Rows split into chunks that fit the first-level cache. The split depends on the shape only, so sums over chunks
// are bit-identical for any number of threads.
struct Chunks {
  int64_t rows, rows_per_chunk, count;

  Chunks(int64_t rows, int64_t row_bytes)
      : rows(rows),
        rows_per_chunk(std::max<int64_t>(1, kBytes / row_bytes)),
        count((rows + rows_per_chunk - 1) / rows_per_chunk) {}

  int64_t begin(int64_t chunk) const { return chunk * rows_per_chunk; }
  int64_t size(int64_t chunk) const { return std::min(rows_per_chunk, rows - begin(chunk)); }

 private:
  static constexpr int64_t kBytes = 16 * 1024;
};

// totals[i] = sum over parts of parts[part * width + i], in double and in order.
template <typename Store>
void SumParts(const Turn& turn, const float* parts, int64_t count, int64_t width, Store store) {
  constexpr int64_t kBlock = 16;
  Parallel(turn, (width + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock, size = std::min(kBlock, width - begin);
    double totals[kBlock] = {};
    for (int64_t part = 0; part < count; ++part) {
      for (int64_t i = 0; i < size; ++i) totals[i] += parts[part * width + begin + i];
    }
    for (int64_t i = 0; i < size; ++i) store(begin + i, totals[i]);
  });
}

}  // namespace resnet_jax
