// Compiled once per instruction set (ROW_KERNELS_ISA = v2, v3, v4); CMakeLists.txt explains why it uses no
// templates of the standard library.
#include "row_kernels.h"

namespace resnet_jax {
namespace ROW_KERNELS_ISA {
namespace {

// One vector register of floats. GCC 12 compiles comparisons of longer vectors to code for each element.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UnsignedWords __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// The same vectors at any address. GCC 12 splits a memcpy of 32 bytes into two halves.
template <typename V>
struct Anywhere {
  typedef V type __attribute__((aligned(1), may_alias));
};

#define INLINE inline __attribute__((always_inline))

// The number of lanes in use. It is a constant, kLanes, in all blocks of channels but the last.
struct AllLanes {
  constexpr operator int64_t() const { return kLanes; }
};

// Calls body(c, lanes) for every block of channels; c is its first channel.
template <typename Body>
INLINE void ForBlocks(int64_t channels, Body body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, AllLanes{});
  if (c < channels) body(c, channels - c);
}

template <typename V, typename T, typename L>
INLINE V LoadLanes(const T* from, L lanes) {
  V v = {};
  if (lanes == kLanes) {
    v = *reinterpret_cast<const typename Anywhere<V>::type*>(from);
  } else {
    __builtin_memcpy(&v, from, lanes * sizeof(T));
  }
  return v;
}

template <typename V, typename T, typename L>
INLINE void StoreLanes(T* to, V v, L lanes) {
  if (lanes == kLanes) {
    *reinterpret_cast<typename Anywhere<V>::type*>(to) = v;
  } else {
    __builtin_memcpy(to, &v, lanes * sizeof(T));
  }
}

template <typename L>
INLINE Floats Load(const float* from, L lanes) {
  return LoadLanes<Floats>(from, lanes);
}

template <typename L>
INLINE Floats Load(const uint16_t* from, L lanes) {
  return (Floats)(__builtin_convertvector(LoadLanes<Halves>(from, lanes), UnsignedWords) << 16);
}

template <typename L>
INLINE void Store(float* to, Floats v, L lanes) {
  StoreLanes(to, v, lanes);
}

template <typename L>
INLINE void Store(uint16_t* to, Floats v, L lanes) {
  const UnsignedWords bits = (UnsignedWords)v;
  const UnsignedWords even = bits + 0x7fff + ((bits >> 16) & 1);          // round to nearest, ties to even
  const UnsignedWords rounded = v == v ? even : (bits | 0x400000);        // a NaN stays a NaN
  StoreLanes(to, __builtin_convertvector(rounded >> 16, Halves), lanes);
}

INLINE Floats Relu(Floats v) { return v < 0.0f ? Floats{} : v; }  // keeps NaN

template <typename T>
void Moments(const T* x, int64_t rows, int64_t channels, const float* shift, float* sum, float* square) {
  ForBlocks(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Floats origin = Load(shift + c, lanes);
    Floats sums[2] = {}, squares[2] = {};  // two independent sums hide the latency of additions
    const auto add = [&](int64_t row, int chain) __attribute__((always_inline)) {
      const Floats v = Load(x + row * channels + c, lanes) - origin;
      sums[chain] += v;
      squares[chain] += v * v;
    };
    int64_t row = 0;
    for (; row + 1 < rows; row += 2) {
      add(row, 0);
      add(row + 1, 1);
    }
    if (row < rows) add(row, 0);
    Store(sum + c, sums[0] + sums[1], lanes);
    Store(square + c, squares[0] + squares[1], lanes);
  });
}

template <typename T, bool kRelu, bool kResidual>
void NormaliseAs(const T* x, const T* residual, int64_t rows, int64_t channels, Affine affine, T* y) {
  for (int64_t row = 0; row < rows; ++row) {
    ForBlocks(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      const int64_t at = row * channels + c;
      Floats v = Load(x + at, lanes) * Load(affine.scale + c, lanes) + Load(affine.offset + c, lanes);
      if (kResidual) v += Load(residual + at, lanes);
      Store(y + at, kRelu ? Relu(v) : v, lanes);
    });
  }
}

template <typename T>
void Normalise(const T* x, const T* residual, int64_t rows, int64_t channels, Affine affine, bool relu, T* y) {
  if (residual) {
    (relu ? NormaliseAs<T, true, true> : NormaliseAs<T, false, true>)(x, residual, rows, channels, affine, y);
  } else {
    (relu ? NormaliseAs<T, true, false> : NormaliseAs<T, false, false>)(x, residual, rows, channels, affine, y);
  }
}

enum class Mask { kNone, kFromX, kFromY };

template <typename T, typename D, Mask kMask>
void GradientSumsAs(const T* x, const D* dy, const T* y, int64_t rows, int64_t channels, const float* mean,
                    Affine affine, D* dresidual, float* sum, float* product) {
  ForBlocks(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Floats center = Load(mean + c, lanes);
    const Floats scale = kMask == Mask::kFromX ? Load(affine.scale + c, lanes) : Floats{};
    const Floats offset = kMask == Mask::kFromX ? Load(affine.offset + c, lanes) : Floats{};
    Floats sums[2] = {}, products[2] = {};
    const auto add = [&](int64_t row, int chain) __attribute__((always_inline)) {
      const int64_t at = row * channels + c;
      const Floats v = Load(x + at, lanes);
      Floats g = Load(dy + at, lanes);
      if (kMask == Mask::kFromX) g = v * scale + offset > 0.0f ? g : Floats{};
      if (kMask == Mask::kFromY) g = Load(y + at, lanes) > 0.0f ? g : Floats{};
      if (dresidual) Store(dresidual + at, g, lanes);
      sums[chain] += g;
      products[chain] += g * (v - center);
    };
    int64_t row = 0;
    for (; row + 1 < rows; row += 2) {
      add(row, 0);
      add(row + 1, 1);
    }
    if (row < rows) add(row, 0);
    Store(sum + c, sums[0] + sums[1], lanes);
    Store(product + c, products[0] + products[1], lanes);
  });
}

template <typename T>
void GradientSums(const T* x, const T* dy, const T* y, int64_t rows, int64_t channels, const float* mean,
                  Affine affine, bool relu, T* dresidual, float* sum, float* product) {
  const auto as = y      ? GradientSumsAs<T, T, Mask::kFromY>
                  : relu ? GradientSumsAs<T, T, Mask::kFromX>
                         : GradientSumsAs<T, T, Mask::kNone>;
  as(x, dy, y, rows, channels, mean, affine, dresidual, sum, product);
}

template <typename T>
void GradientSumsOfFloat(const T* x, const float* dy, int64_t rows, int64_t channels, const float* mean, float* sum,
                         float* product) {
  GradientSumsAs<T, float, Mask::kNone>(x, dy, nullptr, rows, channels, mean, {}, nullptr, sum, product);
}

template <typename T, typename D, bool kRelu>
void GradientAs(const T* x, const D* dy, int64_t rows, int64_t channels, const float* mean, Affine affine,
                const float* a, const float* b, const float* c, T* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    ForBlocks(channels, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
      const int64_t at = row * channels + k;
      const Floats v = Load(x + at, lanes);
      Floats g = Load(dy + at, lanes);
      if (kRelu) g = v * Load(affine.scale + k, lanes) + Load(affine.offset + k, lanes) > 0.0f ? g : Floats{};
      Store(dx + at, Load(a + k, lanes) * g + (Load(b + k, lanes) * (v - Load(mean + k, lanes)) + Load(c + k, lanes)),
            lanes);
    });
  }
}

template <typename T>
void Gradient(const T* x, const T* dy, int64_t rows, int64_t channels, const float* mean, Affine affine, bool relu,
              const float* a, const float* b, const float* c, T* dx) {
  (relu ? GradientAs<T, T, true> : GradientAs<T, T, false>)(x, dy, rows, channels, mean, affine, a, b, c, dx);
}

template <typename T>
void GradientOfFloat(const T* x, const float* dy, int64_t rows, int64_t channels, const float* mean, const float* a,
                     const float* b, const float* c, T* dx) {
  GradientAs<T, float, false>(x, dy, rows, channels, mean, {}, a, b, c, dx);
}

inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// One (pixel, window) pair: the offset of the other one's channels, and the index of the pixel in the window.
struct Tap {
  int64_t at;
  int32_t index;
};

template <typename T, bool kAffine>
void MaxPoolAs(const T* image, const Window& p, int64_t pooled_row, const Affine* affine, T* y, uint8_t* index) {
  const int64_t top = pooled_row * p.stride_h - p.pad_top;
  const int64_t first_h = Max(0, -top), last_h = Min(p.window_h, p.height - top);
  Tap taps[kNoPixel];
  for (int64_t column = 0; column < p.pooled_width; ++column) {
    const int64_t left = column * p.stride_w - p.pad_left;
    const int64_t first_w = Max(0, -left), last_w = Min(p.window_w, p.width - left);
    int count = 0;
    for (int64_t h = first_h; h < last_h; ++h) {
      for (int64_t w = first_w; w < last_w; ++w) {
        taps[count++] = {((top + h) * p.width + left + w) * p.channels, static_cast<int32_t>(h * p.window_w + w)};
      }
    }
    ForBlocks(p.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      const Floats scale = kAffine ? Load(affine->scale + c, lanes) : Floats{};
      const Floats offset = kAffine ? Load(affine->offset + c, lanes) : Floats{};
      Floats best = Floats{} - __builtin_inff();
      Words winner = Words{} + taps[0].index;
      for (int tap = 0; tap < count; ++tap) {
        Floats v = Load(image + taps[tap].at + c, lanes);
        if (kAffine) v = v * scale + offset;
        const Words wins = (v > best) | (v != v);  // NaN is the maximum, as in XLA and PyTorch
        best = wins ? v : best;
        winner = wins ? Words{} + taps[tap].index : winner;
      }
      if (kAffine) {
        winner = best > 0.0f ? winner : Words{} + kNoPixel;
        best = Relu(best);
      }
      Store(y + column * p.channels + c, best, lanes);
      StoreLanes(index + column * p.channels + c, __builtin_convertvector(winner, Bytes), lanes);
    });
  }
}

template <typename T>
void MaxPool(const T* image, const Window& window, int64_t pooled_row, const Affine* affine, T* y, uint8_t* index) {
  (affine ? MaxPoolAs<T, true> : MaxPoolAs<T, false>)(image, window, pooled_row, affine, y, index);
}

// First window along one axis that covers the pixel.
inline int64_t FirstCover(int64_t pixel, int64_t pad, int64_t window, int64_t stride) {
  const int64_t beyond = pixel + pad - window;  // the last window start that does not cover the pixel
  return beyond < 0 ? 0 : beyond / stride + 1;
}

template <typename T, typename D>
void MaxPoolGradientAs(const T* dy, const uint8_t* index, const Window& p, int64_t row, D* dx) {
  const int64_t first_h = FirstCover(row, p.pad_top, p.window_h, p.stride_h);
  const int64_t last_h = Min(p.pooled_height, (row + p.pad_top) / p.stride_h + 1);
  Tap taps[kNoPixel];
  for (int64_t column = 0; column < p.width; ++column) {
    const int64_t first_w = FirstCover(column, p.pad_left, p.window_w, p.stride_w);
    const int64_t last_w = Min(p.pooled_width, (column + p.pad_left) / p.stride_w + 1);
    int count = 0;
    for (int64_t h = first_h; h < last_h; ++h) {
      for (int64_t w = first_w; w < last_w; ++w) {
        const int64_t me = (row + p.pad_top - h * p.stride_h) * p.window_w + column + p.pad_left - w * p.stride_w;
        taps[count++] = {(h * p.pooled_width + w) * p.channels, static_cast<int32_t>(me)};
      }
    }
    ForBlocks(p.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      Floats total = {};
      for (int tap = 0; tap < count; ++tap) {
        const int64_t at = taps[tap].at + c;
        const Words won = __builtin_convertvector(LoadLanes<Bytes>(index + at, lanes), Words) == taps[tap].index;
        const Floats gradient = Load(dy + at, lanes);
        total += won ? gradient : Floats{};
      }
      Store(dx + column * p.channels + c, total, lanes);
    });
  }
}

template <typename T>
void MaxPoolGradient(const T* dy, const uint8_t* index, const Window& window, int64_t row, T* dx, float* dx_float) {
  if (dx) MaxPoolGradientAs(dy, index, window, row, dx);
  if (dx_float) MaxPoolGradientAs(dy, index, window, row, dx_float);
}

template <typename T>
constexpr RowKernels<T> kTable = {
    Moments<T>,  Normalise<T>,       GradientSums<T>, GradientSumsOfFloat<T>,
    Gradient<T>, GradientOfFloat<T>, MaxPool<T>,      MaxPoolGradient<T>,
};

}  // namespace

extern const RowKernels<float> kFloat;
extern const RowKernels<uint16_t> kBfloat16;
const RowKernels<float> kFloat = kTable<float>;
const RowKernels<uint16_t> kBfloat16 = kTable<uint16_t>;

}  // namespace ROW_KERNELS_ISA
}  // namespace resnet_jax
