// Compiled once per instruction set (WINOGRAD_ISA = v3, v4); CMakeLists.txt explains why it uses no templates of the
// standard library.
#include "winograd_kernels.h"

#include <immintrin.h>

namespace resnet_jax {
namespace WINOGRAD_ISA {
namespace {

#define INLINE inline __attribute__((always_inline))

// Loads and stores are intrinsics: GCC 12 splits a 32-byte memcpy into two halves.
#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
INLINE Floats Load(const float* from) { return (Floats)_mm512_loadu_ps(from); }
INLINE void Store(float* to, Floats v) { _mm512_storeu_ps(to, (__m512)v); }
INLINE Floats Splat(float x) { return (Floats)_mm512_set1_ps(x); }
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
INLINE Words Widened(const uint16_t* from) { return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)); }
INLINE void Store(uint16_t* to, Halves v) { _mm256_storeu_si256((__m256i*)to, (__m256i)v); }
#else
constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(32)));
INLINE Floats Load(const float* from) { return (Floats)_mm256_loadu_ps(from); }
INLINE void Store(float* to, Floats v) { _mm256_storeu_ps(to, (__m256)v); }
INLINE Floats Splat(float x) { return (Floats)_mm256_set1_ps(x); }
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
INLINE Words Widened(const uint16_t* from) { return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)); }
INLINE void Store(uint16_t* to, Halves v) { _mm_storeu_si128((__m128i*)to, (__m128i)v); }
#endif

// bfloat16 is the upper half of a float.
INLINE Floats Load(const uint16_t* from) { return (Floats)(Widened(from) << 16); }
INLINE void Store(uint16_t* to, Floats v) {
  const Words bits = (Words)v;
  const Words even = bits + 0x7fff + ((bits >> 16) & 1);      // round to nearest, ties to even
  const Words rounded = v == v ? even : (bits | 0x400000);    // a NaN stays a NaN
  Store(to, __builtin_convertvector(rounded >> 16, Halves));
}

// The transforms along one axis, of F(4x4, 3x3): the points 0, 1, -1, 2, -2 and infinity.
struct Four {
  static constexpr int64_t kTile = 4, kSize = 6;

  static INLINE void Image(const Floats* x, Floats* y) {
    const Floats even = x[4] - 4.f * x[2], odd = x[3] - 4.f * x[1];
    const Floats plain = x[4] - x[2], twice = 2.f * (x[3] - x[1]);
    y[0] = 4.f * x[0] - 5.f * x[2] + x[4];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = plain + twice;
    y[4] = plain - twice;
    y[5] = 4.f * x[1] - 5.f * x[3] + x[5];
  }
  static INLINE void Output(const Floats* x, Floats* y) {
    const Floats sum = x[1] + x[2], difference = x[1] - x[2], far_sum = x[3] + x[4], far = x[3] - x[4];
    y[0] = x[0] + sum + far_sum;
    y[1] = difference + 2.f * far;
    y[2] = sum + 4.f * far_sum;
    y[3] = difference + 8.f * far + x[5];
  }
  static INLINE void Gradient(const Floats* x, Floats* y) {
    const Floats even = x[0] + x[2], odd = x[1] + x[3];
    const Floats far_even = x[0] + 4.f * x[2], far_odd = 2.f * x[1] + 8.f * x[3];
    y[0] = x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = far_even + far_odd;
    y[4] = far_even - far_odd;
    y[5] = x[3];
  }
  static INLINE void Kernel(const Floats* x, Floats* y) {
    const Floats even = (-1.f / 6) * (x[0] + x[2]), odd = (-1.f / 6) * x[1];
    const Floats far_even = (1.f / 24) * x[0] + (1.f / 6) * x[2], far_odd = (1.f / 12) * x[1];
    y[0] = 0.25f * x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = far_even + far_odd;
    y[4] = far_even - far_odd;
    y[5] = x[2];
  }
  static INLINE void KernelGradient(const Floats* x, Floats* y) {
    const Floats sum = (-1.f / 6) * (x[1] + x[2]), far_sum = x[3] + x[4];
    y[0] = 0.25f * x[0] + sum + (1.f / 24) * far_sum;
    y[1] = (-1.f / 6) * (x[1] - x[2]) + (1.f / 12) * (x[3] - x[4]);
    y[2] = sum + (1.f / 6) * far_sum + x[5];
  }
};

// F(3x3, 3x3): the points 0, 1, -1, 2 and infinity.
struct Three {
  static constexpr int64_t kTile = 3, kSize = 5;

  static INLINE void Image(const Floats* x, Floats* y) {
    y[0] = 2.f * (x[0] - x[2]) + (x[3] - x[1]);
    y[1] = x[3] - x[2] - 2.f * x[1];
    y[2] = x[3] - 3.f * x[2] + 2.f * x[1];
    y[3] = x[3] - x[1];
    y[4] = x[4] - x[2] - 2.f * (x[3] - x[1]);
  }
  static INLINE void Output(const Floats* x, Floats* y) {
    const Floats sum = x[1] + x[2], difference = x[1] - x[2];
    y[0] = x[0] + sum + x[3];
    y[1] = difference + 2.f * x[3];
    y[2] = sum + 4.f * x[3] + x[4];
  }
  static INLINE void Gradient(const Floats* x, Floats* y) {
    const Floats even = x[0] + x[2];
    y[0] = x[0];
    y[1] = even + x[1];
    y[2] = even - x[1];
    y[3] = x[0] + 2.f * x[1] + 4.f * x[2];
    y[4] = x[2];
  }
  static INLINE void Kernel(const Floats* x, Floats* y) {
    const Floats even = x[0] + x[2];
    y[0] = 0.5f * x[0];
    y[1] = -0.5f * (even + x[1]);
    y[2] = (-1.f / 6) * (even - x[1]);
    y[3] = (1.f / 6) * (x[0] + 2.f * x[1] + 4.f * x[2]);
    y[4] = x[2];
  }
  static INLINE void KernelGradient(const Floats* x, Floats* y) {
    const Floats one = -0.5f * x[1], minus = (-1.f / 6) * x[2], two = (1.f / 6) * x[3];
    y[0] = 0.5f * x[0] + one + minus + two;
    y[1] = one - minus + 2.f * two;
    y[2] = one + minus + 4.f * two + x[4];
  }
};

// The first pixel of a tile, counted in the padded image.
struct Place {
  int64_t image, row, column;
};

INLINE Place PlaceOf(const Tiles& tiles, int64_t number) {
  const int64_t in_image = number % (tiles.rows * tiles.columns);
  return {number / (tiles.rows * tiles.columns), in_image / tiles.columns * tiles.down,
          in_image % tiles.columns * tiles.right};
}

// Transforms `kIn` x `kIn` numbers along rows, then along columns. load(i, j) reads one, store(i, j, value) keeps one.
template <int64_t kIn, int64_t kOut, typename Transform, typename LoadAt, typename StoreAt>
INLINE void Along(Transform transform, LoadAt load, StoreAt store) {
  Floats half[kIn][kOut];
#pragma GCC unroll 6
  for (int64_t i = 0; i < kIn; ++i) {
    Floats line[kIn];
#pragma GCC unroll 6
    for (int64_t j = 0; j < kIn; ++j) line[j] = load(i, j);
    transform(line, half[i]);
  }
#pragma GCC unroll 6
  for (int64_t j = 0; j < kOut; ++j) {
    Floats line[kIn], done[kOut];
#pragma GCC unroll 6
    for (int64_t i = 0; i < kIn; ++i) line[i] = half[i][j];
    transform(line, done);
#pragma GCC unroll 6
    for (int64_t i = 0; i < kOut; ++i) store(i, j, done[i]);
  }
}

// Calls body(pixel, inside): the offset of the tile's first pixel, and whether its pixel (i, j) is in the image. The
// second is a constant for a tile that lies in the image as a whole.
template <int64_t kSize, typename Body>
INLINE void AtTile(const Tiles& tiles, Place place, Body body) {
  const int64_t row = place.row - tiles.top, column = place.column - tiles.left;
  const int64_t pixel = ((place.image * tiles.height + row) * tiles.width + column) * tiles.channels;
  if (row >= 0 && column >= 0 && row + kSize <= tiles.height && column + kSize <= tiles.width) {
    body(pixel, [](int64_t, int64_t) __attribute__((always_inline)) { return true; });
  } else {
    body(pixel, [&](int64_t i, int64_t j) __attribute__((always_inline)) {
      return row + i >= 0 && row + i < tiles.height && column + j >= 0 && column + j < tiles.width;
    });
  }
}

template <typename F, typename T>
void Image(const void* images, const Tiles& tiles, Range range, float* v, int64_t stride) {
  const T* x = static_cast<const T*>(images);
  const int64_t line = tiles.width * tiles.channels;
  for (int64_t t = 0; t < range.count; ++t) {
    float* slot = v + (range.slot + t) * kPanel;
    AtTile<F::kSize>(tiles, PlaceOf(tiles, range.first + t), [&](int64_t pixel, auto inside)
                     __attribute__((always_inline)) {
      for (int64_t c = 0; c < tiles.channels; c += kLanes) {
        float* to = slot + c / kPanel * range.slots * kPanel + c % kPanel;
        Along<F::kSize, F::kSize>(
            F::Image,
            [&](int64_t i, int64_t j) __attribute__((always_inline)) {
              return inside(i, j) ? Load(x + pixel + i * line + j * tiles.channels + c) : Floats{};
            },
            [&](int64_t i, int64_t j, Floats value) __attribute__((always_inline)) {
              Store(to + (i * F::kSize + j) * stride, value);
            });
      }
    });
  }
}

template <typename F, typename T>
void Gradient(const void* gradients, const Tiles& tiles, Range range, float* z, int64_t stride, float* sum) {
  const T* dy = static_cast<const T*>(gradients);
  const int64_t line = tiles.width * tiles.channels;
  if (sum) {
    for (int64_t c = 0; c < tiles.channels; c += kLanes) Store(sum + c, Floats{});
  }
  for (int64_t t = 0; t < range.count; ++t) {
    float* slot = z + (range.slot + t) * kPanel;
    AtTile<F::kTile>(tiles, PlaceOf(tiles, range.first + t), [&](int64_t pixel, auto inside)
                     __attribute__((always_inline)) {
      for (int64_t c = 0; c < tiles.channels; c += kLanes) {
        float* to = slot + c / kPanel * range.slots * kPanel + c % kPanel;
        Floats total = {};
        Along<F::kTile, F::kSize>(
            F::Gradient,
            [&](int64_t i, int64_t j) __attribute__((always_inline)) {
              const Floats value = inside(i, j) ? Load(dy + pixel + i * line + j * tiles.channels + c) : Floats{};
              total += value;
              return value;
            },
            [&](int64_t i, int64_t j, Floats value) __attribute__((always_inline)) {
              Store(to + (i * F::kSize + j) * stride, value);
            });
        if (sum) Store(sum + c, Load(sum + c) + total);
      }
    });
  }
}

template <typename F, typename T>
void Output(const float* m, int64_t stride, const Tiles& tiles, Range range, const WinogradAdded& also, void* images) {
  T* y = static_cast<T*>(images);
  const T* residual = static_cast<const T*>(also.residual);
  const int64_t line = tiles.width * tiles.channels;
  for (int64_t t = 0; t < range.count; ++t) {
    const float* slot = m + (range.slot + t) * kPanel;
    AtTile<F::kTile>(tiles, PlaceOf(tiles, range.first + t), [&](int64_t pixel, auto inside)
                     __attribute__((always_inline)) {
      for (int64_t c = 0; c < tiles.channels; c += kLanes) {
        const float* from = slot + c / kPanel * range.slots * kPanel + c % kPanel;
        const Floats added = also.bias ? Load(also.bias + c) : Floats{};
        Along<F::kSize, F::kTile>(
            F::Output,
            [&](int64_t i, int64_t j) __attribute__((always_inline)) {
              return Load(from + (i * F::kSize + j) * stride);
            },
            [&](int64_t i, int64_t j, Floats value) __attribute__((always_inline)) {
              if (!inside(i, j)) return;
              const int64_t at = pixel + i * line + j * tiles.channels + c;
              Floats total = value + added;
              if (residual) total += Load(residual + at);
              if (also.relu) total = total < 0.0f ? Floats{} : total;  // keeps NaN
              Store(y + at, total);
            });
      }
    });
  }
}

template <typename F>
void Kernel(const float* kernel, int64_t tap, bool flip, float* u, int64_t stride) {
  for (int64_t c = 0; c < kPanel; c += kLanes) {
    Along<3, F::kSize>(
        F::Kernel,
        [&](int64_t i, int64_t j) __attribute__((always_inline)) {
          return Load(kernel + (flip ? 8 - (i * 3 + j) : i * 3 + j) * tap + c);
        },
        [&](int64_t i, int64_t j, Floats value) __attribute__((always_inline)) {
          Store(u + (i * F::kSize + j) * stride + c, value);
        });
  }
}

template <typename F>
void KernelGradient(const float* u, int64_t stride, float* kernel, int64_t tap) {
  for (int64_t c = 0; c < kPanel; c += kLanes) {
    Along<F::kSize, 3>(
        F::KernelGradient,
        [&](int64_t i, int64_t j) __attribute__((always_inline)) {
          return Load(u + (i * F::kSize + j) * stride + c);
        },
        [&](int64_t i, int64_t j, Floats value) __attribute__((always_inline)) {
          Store(kernel + (i * 3 + j) * tap + c, value);
        });
  }
}

// The direct convolution: v has the pixels that each tap sees.
template <typename T>
void TapImage(const void* images, const Tiles& tiles, Range range, float* v, int64_t stride) {
  const T* x = static_cast<const T*>(images);
  for (int64_t t = 0; t < range.count; ++t) {
    const Place place = PlaceOf(tiles, range.first + t);
    for (int64_t i = 0; i < tiles.window_h; ++i) {
      for (int64_t j = 0; j < tiles.window_w; ++j) {
        const int64_t row = place.row - tiles.top + i, column = place.column - tiles.left + j;
        const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
        const T* pixel = x + ((place.image * tiles.height + row) * tiles.width + column) * tiles.channels;
        float* to = v + (i * tiles.window_w + j) * stride + (range.slot + t) * kPanel;
        for (int64_t c = 0; c < tiles.channels; c += kLanes) {
          Store(to + c / kPanel * range.slots * kPanel + c % kPanel, inside ? Load(pixel + c) : Floats{});
        }
      }
    }
  }
}

template <typename T>
void TapGradient(const void* gradients, const Tiles& tiles, Range range, float* z, int64_t, float* sum) {
  const T* pixel = static_cast<const T*>(gradients) + range.first * tiles.channels;
  for (int64_t c = 0; c < tiles.channels; c += kLanes) {
    float* to = z + (c / kPanel * range.slots + range.slot) * kPanel + c % kPanel;
    Floats total = {};
    for (int64_t t = 0; t < range.count; ++t) {
      const Floats value = Load(pixel + t * tiles.channels + c);
      total += value;
      Store(to + t * kPanel, value);
    }
    if (sum) Store(sum + c, total);
  }
}

// kRows x kVectors sums stay in registers. `a` has one number for each row, b one vector for each column.
template <int64_t kRows, int64_t kVectors>
struct Sums {
  Floats sums[kRows][kVectors];

  INLINE void Clear() {
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kVectors; ++j) sums[i][j] = Floats{};
    }
  }
  template <typename A, typename B>
  INLINE void Add(A a, B b) {
    Floats columns[kVectors];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kVectors; ++j) columns[j] = b(j);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const Floats row = Splat(a(i));
#pragma GCC unroll 4
      for (int64_t j = 0; j < kVectors; ++j) sums[i][j] += row * columns[j];
    }
  }
  template <typename To>
  INLINE void Move(bool first, To to) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kVectors; ++j) Store(to(i, j), first ? sums[i][j] : Load(to(i, j)) + sums[i][j]);
    }
  }
};

// AVX2 has 16 registers, AVX-512 32.
constexpr int64_t kRows = kLanes == 16 ? 12 : 6, kPanels = kLanes == 16 ? 2 : 1;
constexpr int64_t kVectorsInPanel = kPanel / kLanes;
constexpr int64_t kDepth = 16;  // panels of C in one pass: 16 KiB of u stay in the first-level cache

template <int64_t kColumns>
void ForwardPanels(const float* v, const float* u, int64_t inputs, int64_t slots, int64_t count, float* m) {
  for (int64_t begin = 0; begin < inputs; begin += kDepth) {
    const int64_t end = begin + kDepth < inputs ? begin + kDepth : inputs;
    for (int64_t row = 0; row < count; row += kRows) {
      Sums<kRows, kColumns * kVectorsInPanel> sums;
      sums.Clear();
      for (int64_t q = begin; q < end; ++q) {
        const float* a = v + (q * slots + row) * kPanel;
        const float* b = u + q * kPanel * kPanel;
        for (int64_t k = 0; k < kPanel; ++k) {
          sums.Add([&](int64_t i) __attribute__((always_inline)) { return a[i * kPanel + k]; },
                   [&](int64_t j) __attribute__((always_inline)) {
                     const int64_t panel = j / kVectorsInPanel;
                     return Load(b + (panel * inputs * kPanel + k) * kPanel + j % kVectorsInPanel * kLanes);
                   });
        }
      }
      sums.Move(begin == 0, [&](int64_t i, int64_t j) __attribute__((always_inline)) {
        return m + (j / kVectorsInPanel * slots + row + i) * kPanel + j % kVectorsInPanel * kLanes;
      });
    }
  }
}

void Forward(const float* v, const float* u, int64_t inputs, int64_t slots, int64_t count, int64_t panels, float* m) {
  if (panels == kPanels) {
    ForwardPanels<kPanels>(v, u, inputs, slots, count, m);
  } else {
    ForwardPanels<1>(v, u, inputs, slots, count, m);
  }
}

template <int64_t kFrom, int64_t kCount, int64_t kColumns>
INLINE void GradientRows(const float* v, const float* z, int64_t inputs, int64_t slots, int64_t count, bool first,
                         float* u) {
  Sums<kCount, kColumns * kVectorsInPanel> sums;
  sums.Clear();
  for (int64_t t = 0; t < count; ++t) {
    sums.Add([&](int64_t i) __attribute__((always_inline)) { return v[t * kPanel + kFrom + i]; },
             [&](int64_t j) __attribute__((always_inline)) {
               return Load(z + (j / kVectorsInPanel * slots + t) * kPanel + j % kVectorsInPanel * kLanes);
             });
  }
  sums.Move(first, [&](int64_t i, int64_t j) __attribute__((always_inline)) {
    return u + (j / kVectorsInPanel * inputs * kPanel + kFrom + i) * kPanel + j % kVectorsInPanel * kLanes;
  });
}

template <int64_t kColumns>
INLINE void GradientPanels(const float* v, const float* z, int64_t inputs, int64_t slots, int64_t count, bool first,
                           float* u) {
  for (int64_t q = 0; q < inputs; ++q, v += slots * kPanel, u += kPanel * kPanel) {
#ifdef __AVX512F__
    GradientRows<0, 8, kColumns>(v, z, inputs, slots, count, first, u);
    GradientRows<8, 8, kColumns>(v, z, inputs, slots, count, first, u);
#else
    GradientRows<0, 6, kColumns>(v, z, inputs, slots, count, first, u);
    GradientRows<6, 5, kColumns>(v, z, inputs, slots, count, first, u);
    GradientRows<11, 5, kColumns>(v, z, inputs, slots, count, first, u);
#endif
  }
}

void GradientProducts(const float* v, const float* z, int64_t inputs, int64_t slots, int64_t count, int64_t panels,
                      bool first, float* u) {
  if (panels == kPanels) {
    GradientPanels<kPanels>(v, z, inputs, slots, count, first, u);
  } else {
    GradientPanels<1>(v, z, inputs, slots, count, first, u);
  }
}

template <typename F, typename T>
constexpr WinogradKernels KernelsFor() {
  return {F::kTile, Image<F, T>, Gradient<F, T>, Output<F, T>, Kernel<F>, KernelGradient<F>};
}

template <typename T>
constexpr WinogradKernels kTaps = {1, TapImage<T>, TapGradient<T>, nullptr, nullptr, nullptr};

}  // namespace

extern const Winograd kWinograd;
const Winograd kWinograd = {
    {kRows, kPanels, Forward, GradientProducts},
    {kTaps<float>, KernelsFor<Three, float>(), KernelsFor<Four, float>()},
    {kTaps<uint16_t>, KernelsFor<Three, uint16_t>(), KernelsFor<Four, uint16_t>()}};

}  // namespace WINOGRAD_ISA
}  // namespace resnet_jax
