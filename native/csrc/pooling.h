// Max-pool over a whole batch, parallel over rows; max_pool.cc and batch_norm.cc use it.
#pragma once

#include <omp.h>

#include <stdexcept>

#include "parallel.h"
#include "row_kernels.h"
#include "runtime.h"

namespace resnet_jax {

using Ints = ffi::Span<const int64_t>;

// x: (N, H, W, C), pooled: (N, h, w, C); window (kh, kw), strides (sh, sw), padding (top, bottom, left, right).
inline Window WindowOf(const ffi::AnyBuffer& x, const ffi::AnyBuffer& pooled, Ints window, Ints strides, Ints padding) {
  auto in = x.dimensions(), out = pooled.dimensions();
  if (!IsFloatOrBfloat16(x) || x.element_type() != pooled.element_type() || in.size() != 4 || out.size() != 4 ||
      window.size() != 2 || strides.size() != 2 || padding.size() != 4 || window[0] * window[1] >= kNoPixel) {
    throw std::invalid_argument("expected f32 or bf16 (N, H, W, C) and a window of less than 255 pixels");
  }
  return {in[1], in[2], in[3], out[1], out[2], window[0], window[1], strides[0], strides[1], padding[0], padding[2]};
}

// Pools `images` images; index receives the place of each maximum in its window. affine may be null.
template <typename T>
void PoolRows(const Turn& turn, const T* x, int64_t images, const Window& p, const Affine* affine, T* y,
              uint8_t* index) {
  const int64_t image_size = p.height * p.width * p.channels, row_size = p.pooled_width * p.channels;
  Parallel(turn, images * p.pooled_height, [&](int64_t row) {
    Kernels<T>().max_pool(x + row / p.pooled_height * image_size, p, row % p.pooled_height, affine, y + row * row_size,
                          index + row * row_size);
  });
}

// Calls body(row, gradient) for every row of pixels of every image. gradient is the max-pool gradient of the row,
// as floats, in a buffer that stays in the cache of the core.
template <typename T, typename Body>
void ForPixelRows(const Turn& turn, const T* dy, const uint8_t* index, int64_t images, const Window& p, Body body) {
  const int64_t pooled_size = p.pooled_height * p.pooled_width * p.channels, row_size = p.width * p.channels;
  std::vector<float> rows(turn.threads() * row_size);
  Parallel(turn, images * p.height, [&](int64_t row) {
    float* gradient = rows.data() + omp_get_thread_num() * row_size;
    const int64_t at = row / p.height * pooled_size;
    Kernels<T>().max_pool_gradient(dy + at, index + at, p, row % p.height, nullptr, gradient);
    body(row, gradient);
  });
}

}  // namespace resnet_jax
