// The vectorised inner loops of batch norm and max-pool, over rows of channels.
//
// A row is the C channels of one pixel, contiguous. Activations are float or bfloat16 (as uint16_t);
// numbers per channel are float. The kernels are single-threaded and independent of XLA and oneDNN.
#pragma once

#include <cstdint>

namespace resnet_jax {

// Batch norm with known statistics: y = x * scale + offset for each channel.
struct Affine {
  const float* scale;
  const float* offset;
};

// A max-pool window over images of height x width pixels. Padding pixels are ignored.
struct Window {
  int64_t height, width, channels;
  int64_t pooled_height, pooled_width;
  int64_t window_h, window_w, stride_h, stride_w, pad_top, pad_left;
};

// The index that max-pool stores if no pixel gets the gradient, because ReLU set the maximum to 0.
constexpr uint8_t kNoPixel = 255;

// T is float or uint16_t (bfloat16).
template <typename T>
struct RowKernels {
  // sum[c] = sum of x - shift, square[c] = sum of (x - shift)^2.
  void (*moments)(const T* x, int64_t rows, int64_t channels, const float* shift, float* sum, float* square);

  // y = relu?(affine(x) + residual?); residual may be null.
  void (*normalise)(const T* x, const T* residual, int64_t rows, int64_t channels, Affine affine, bool relu, T* y);

  // sum[c] = sum of g, product[c] = sum of g * (x - mean). g is dy where the output is positive, else 0. The output
  // is y if given, else affine(x) if relu; otherwise g is dy. g is stored in dresidual if given.
  void (*gradient_sums)(const T* x, const T* dy, const T* y, int64_t rows, int64_t channels, const float* mean,
                        Affine affine, bool relu, T* dresidual, float* sum, float* product);
  void (*gradient_sums_of_float)(const T* x, const float* dy, int64_t rows, int64_t channels, const float* mean,
                                 float* sum, float* product);

  // dx = a * g + b * (x - mean) + c, with g as above (masked by affine(x) > 0 if relu).
  void (*gradient)(const T* x, const T* dy, int64_t rows, int64_t channels, const float* mean, Affine affine,
                   bool relu, const float* a, const float* b, const float* c, T* dx);
  void (*gradient_of_float)(const T* x, const float* dy, int64_t rows, int64_t channels, const float* mean,
                            const float* a, const float* b, const float* c, T* dx);

  // One row of pooled pixels, and the index of the maximum in each window (the first of equal ones, counted along
  // rows). With an affine, it pools relu(affine(x)).
  void (*max_pool)(const T* image, const Window& window, int64_t pooled_row, const Affine* affine, T* y,
                   uint8_t* index);

  // The gradient of one row of pixels: for each pixel, the sum over the windows whose maximum it is. Exactly one of
  // the two outputs is given.
  void (*max_pool_gradient)(const T* dy, const uint8_t* index, const Window& window, int64_t row, T* dx,
                            float* dx_float);
};

// The kernels for the instruction set of this machine.
template <typename T>
const RowKernels<T>& Kernels();

}  // namespace resnet_jax
