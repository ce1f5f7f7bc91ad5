// Batch norm over the last axis in training mode, in four calls. Between them the statistics can be averaged
// over devices:
//
//   moments(x) -> mean, var;            normalise(x, mean, var, ...) -> y
//   gradient_sums(x, dy, ...) -> sums;  gradient(x, dy, mean of sums, ...) -> dx
//
// Each call is one pass over memory. The second call of each pair visits the rows in reverse order, since the rows
// that the first call read last are still in the cache.
#include <cmath>
#include <stdexcept>

#include "pooling.h"
#include "parallel.h"
#include "row_kernels.h"
#include "runtime.h"

namespace resnet_jax {
namespace {

using Channels = ffi::Buffer<ffi::F32, 1>;  // one float per channel; empty if the operand is missing
using ChannelsOut = ffi::Result<Channels>;

int64_t ChannelsOf(const ffi::AnyBuffer& x) {
  if (!IsFloatOrBfloat16(x) || x.dimensions().size() == 0 || x.element_count() == 0) {
    throw std::invalid_argument("expected a non-empty f32 or bf16 operand (..., channels)");
  }
  return x.dimensions().back();
}

// Calls body with a null pointer of the activations' C++ type.
template <typename Body>
void ForType(const ffi::AnyBuffer& x, Body body) {
  if (x.element_type() == ffi::F32) {
    body(static_cast<float*>(nullptr));
  } else {
    body(static_cast<uint16_t*>(nullptr));
  }
}

template <typename T>
T* DataOf(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : static_cast<T*>(buffer.untyped_data());
}

// The numbers per channel of one call, computed from statistics and parameters.
struct Coefficients {
  std::vector<float> scale, offset, inverse_deviation;

  Coefficients(const float* mean, const float* var, const float* gamma, const float* beta, int64_t channels,
               float epsilon)
      : scale(channels), offset(channels), inverse_deviation(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      inverse_deviation[c] = 1.0f / std::sqrt(var[c] + epsilon);
      scale[c] = inverse_deviation[c] * gamma[c];
      offset[c] = beta[c] - mean[c] * scale[c];
    }
  }
  Affine affine() const { return {scale.data(), offset.data()}; }
};

// dx = a * g + b * (x - mean) + c: the gradient of batch norm, given the means over all rows of g and of
// g * normalised(x).
struct GradientCoefficients {
  std::vector<float> a, b, c;

  GradientCoefficients(const Coefficients& forward, const float* mean_g, const float* mean_product)
      : a(forward.scale), b(forward.scale.size()), c(forward.scale.size()) {
    for (size_t i = 0; i < a.size(); ++i) {
      b[i] = -a[i] * mean_product[i] * forward.inverse_deviation[i];
      c[i] = -a[i] * mean_g[i];
    }
  }
};

// x -> mean, biased variance. The first row is subtracted before squaring, which keeps the precision if the mean is
// far from zero.
ffi::Error Moments(ffi::AnyBuffer x, ChannelsOut mean, ChannelsOut var) {
  return Guarded("batch norm moments", [&](const Turn& turn) {
    const int64_t channels = ChannelsOf(x), rows = x.element_count() / channels;
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* data = DataOf<T>(x);
      const Chunks chunks(rows, channels * sizeof(T));
      float* parts = static_cast<float*>(turn.partials().Reserve((2 * chunks.count + 4) * channels * sizeof(float)));
      float* shift = parts + 2 * chunks.count * channels;
      float* zero = shift + channels;  // the first row as floats: its sum about zero
      std::fill(zero, zero + channels, 0.0f);
      Kernels<T>().moments(data, 1, channels, zero, shift, zero + channels);
      Parallel(turn, chunks.count, [&](int64_t i) {
        float* part = parts + 2 * i * channels;
        Kernels<T>().moments(data + chunks.begin(i) * channels, chunks.size(i), channels, shift, part, part + channels);
      });
      SumParts(turn, parts, chunks.count, 2 * channels, [&](int64_t i, double total) {
        (i < channels ? mean->typed_data()[i] : var->typed_data()[i - channels]) = static_cast<float>(total / rows);
      });
      for (int64_t c = 0; c < channels; ++c) {
        const float about_first = mean->typed_data()[c];
        var->typed_data()[c] = std::max(var->typed_data()[c] - about_first * about_first, 0.0f);
        mean->typed_data()[c] = shift[c] + about_first;
      }
    });
  }, x);
}

// y = relu?((x - mean) / sqrt(var + epsilon) * gamma + beta + residual?)
ffi::Error Normalise(ffi::AnyBuffer x, Channels mean, Channels var, Channels gamma, Channels beta,
                     ffi::AnyBuffer residual, ffi::Result<ffi::AnyBuffer> y, float epsilon, bool relu) {
  return Guarded("batch norm", [&](const Turn& turn) {
    const int64_t channels = ChannelsOf(x), rows = x.element_count() / channels;
    ExpectWrites(*y);
    const Coefficients k(mean.typed_data(), var.typed_data(), gamma.typed_data(), beta.typed_data(), channels, epsilon);
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T *data = DataOf<T>(x), *added = DataOf<T>(residual);
      const Chunks chunks(rows, channels * sizeof(T));
      Parallel(turn, chunks.count, [&](int64_t reversed) {
        const int64_t i = chunks.count - 1 - reversed, at = chunks.begin(i) * channels;
        Kernels<T>().normalise(data + at, added ? added + at : nullptr, chunks.size(i), channels, k.affine(), relu,
                               DataOf<T>(*y) + at);
      });
    });
  }, x, residual);
}

// Sums over rows of g and of g * normalised(x), where g is dy masked by the ReLU. g is stored in dresidual
// if requested. y is empty if there is no residual: then the mask is computed from x.
ffi::Error GradientSums(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::AnyBuffer y, Channels mean, Channels var,
                        Channels gamma, Channels beta, ChannelsOut sum, ChannelsOut product,
                        ffi::Result<ffi::AnyBuffer> dresidual, float epsilon, bool relu) {
  return Guarded("batch norm gradient sums", [&](const Turn& turn) {
    const int64_t channels = ChannelsOf(x), rows = x.element_count() / channels;
    ExpectWrites(*dresidual);
    const Coefficients k(mean.typed_data(), var.typed_data(), gamma.typed_data(), beta.typed_data(), channels, epsilon);
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T *output = DataOf<T>(y);
      T* added = DataOf<T>(*dresidual);
      const Chunks chunks(rows, channels * sizeof(T));
      float* parts = static_cast<float*>(turn.partials().Reserve(2 * chunks.count * channels * sizeof(float)));
      Parallel(turn, chunks.count, [&](int64_t i) {
        float* part = parts + 2 * i * channels;
        const int64_t at = chunks.begin(i) * channels;
        Kernels<T>().gradient_sums(DataOf<T>(x) + at, DataOf<T>(dy) + at, output ? output + at : nullptr,
                                   chunks.size(i), channels, mean.typed_data(), k.affine(), relu,
                                   added ? added + at : nullptr, part, part + channels);
      });
      SumParts(turn, parts, chunks.count, 2 * channels, [&](int64_t i, double total) {
        if (i < channels) {
          sum->typed_data()[i] = static_cast<float>(total);
        } else {
          product->typed_data()[i - channels] = static_cast<float>(total * k.inverse_deviation[i - channels]);
        }
      });
    });
  }, x, dy);
}

ffi::Error Gradient(ffi::AnyBuffer x, ffi::AnyBuffer dy, Channels mean, Channels var, Channels gamma, Channels beta,
                    Channels mean_g, Channels mean_product, ffi::Result<ffi::AnyBuffer> dx, float epsilon, bool relu) {
  return Guarded("batch norm gradient", [&](const Turn& turn) {
    const int64_t channels = ChannelsOf(x), rows = x.element_count() / channels;
    ExpectWrites(*dx);
    const Coefficients k(mean.typed_data(), var.typed_data(), gamma.typed_data(), beta.typed_data(), channels, epsilon);
    const GradientCoefficients d(k, mean_g.typed_data(), mean_product.typed_data());
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const Chunks chunks(rows, channels * sizeof(T));
      Parallel(turn, chunks.count, [&](int64_t reversed) {
        const int64_t i = chunks.count - 1 - reversed, at = chunks.begin(i) * channels;
        Kernels<T>().gradient(DataOf<T>(x) + at, DataOf<T>(dy) + at, chunks.size(i), channels, mean.typed_data(),
                              k.affine(), relu, d.a.data(), d.b.data(), d.c.data(), DataOf<T>(*dx) + at);
      });
    });
  }, x, dy);
}

// Max-pool of relu(batch norm of x), without storing the normalised activations.
ffi::Error NormalisePool(ffi::AnyBuffer x, Channels mean, Channels var, Channels gamma, Channels beta,
                         ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::Buffer<ffi::U8>> index, float epsilon,
                         Ints window, Ints strides, Ints padding) {
  return Guarded("batch norm and max-pool", [&](const Turn& turn) {
    const Window p = WindowOf(x, *y, window, strides, padding);
    ExpectWrites(*y);
    ExpectWrites(*index);
    const Coefficients k(mean.typed_data(), var.typed_data(), gamma.typed_data(), beta.typed_data(), p.channels,
                         epsilon);
    const Affine affine = k.affine();
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      PoolRows(turn, DataOf<T>(x), x.dimensions()[0], p, &affine, DataOf<T>(*y), index->typed_data());
    });
  }, x, *y);
}

// GradientSums for NormalisePool. The index tells where the maximum was positive.
ffi::Error PoolGradientSums(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::Buffer<ffi::U8> index, Channels mean,
                            Channels var, ChannelsOut sum, ChannelsOut product, float epsilon, Ints window,
                            Ints strides, Ints padding) {
  return Guarded("batch norm and max-pool gradient sums", [&](const Turn& turn) {
    const Window p = WindowOf(x, dy, window, strides, padding);
    const int64_t rows = x.dimensions()[0] * p.height, row_size = p.width * p.channels;
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      float* parts = static_cast<float*>(turn.partials().Reserve(2 * rows * p.channels * sizeof(float)));
      ForPixelRows(turn, DataOf<T>(dy), index.typed_data(), x.dimensions()[0], p, [&](int64_t row, const float* g) {
        float* part = parts + 2 * row * p.channels;
        Kernels<T>().gradient_sums_of_float(DataOf<T>(x) + row * row_size, g, p.width, p.channels, mean.typed_data(),
                                            part, part + p.channels);
      });
      SumParts(turn, parts, rows, 2 * p.channels, [&](int64_t i, double total) {
        if (i < p.channels) {
          sum->typed_data()[i] = static_cast<float>(total);
        } else {
          const int64_t c = i - p.channels;
          product->typed_data()[c] = static_cast<float>(total / std::sqrt(var.typed_data()[c] + epsilon));
        }
      });
    });
  }, x, dy);
}

ffi::Error PoolGradient(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::Buffer<ffi::U8> index, Channels mean, Channels var,
                        Channels gamma, Channels mean_g, Channels mean_product, ffi::Result<ffi::AnyBuffer> dx,
                        float epsilon, Ints window, Ints strides, Ints padding) {
  return Guarded("batch norm and max-pool gradient", [&](const Turn& turn) {
    const Window p = WindowOf(x, dy, window, strides, padding);
    const int64_t row_size = p.width * p.channels;
    ExpectWrites(*dx);
    const Coefficients k(mean.typed_data(), var.typed_data(), gamma.typed_data(), gamma.typed_data(), p.channels,
                         epsilon);  // the offset is not used: the index holds the mask
    const GradientCoefficients d(k, mean_g.typed_data(), mean_product.typed_data());
    ForType(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      ForPixelRows(turn, DataOf<T>(dy), index.typed_data(), x.dimensions()[0], p, [&](int64_t row, const float* g) {
        Kernels<T>().gradient_of_float(DataOf<T>(x) + row * row_size, g, p.width, p.channels, mean.typed_data(),
                                       d.a.data(), d.b.data(), d.c.data(), DataOf<T>(*dx) + row * row_size);
      });
    });
  }, x, dy);
}

}  // namespace

RESNET_JAX_HANDLER(resnet_jax_bn_moments, Moments,
                   ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<Channels>().Ret<Channels>());
RESNET_JAX_HANDLER(resnet_jax_bn_normalise, Normalise, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<float>("epsilon")
                       .Attr<bool>("relu"));
RESNET_JAX_HANDLER(resnet_jax_bn_gradient_sums, GradientSums, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                       .Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>()
                       .Ret<Channels>().Ret<Channels>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<float>("epsilon")
                       .Attr<bool>("relu"));
RESNET_JAX_HANDLER(resnet_jax_bn_gradient, Gradient, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                       .Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>()
                       .Arg<Channels>().Arg<Channels>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<float>("epsilon")
                       .Attr<bool>("relu"));
RESNET_JAX_HANDLER(resnet_jax_bn_pool, NormalisePool, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>()
                       .Ret<ffi::AnyBuffer>().Ret<ffi::Buffer<ffi::U8>>()
                       .Attr<float>("epsilon")
                       .Attr<Ints>("window").Attr<Ints>("strides").Attr<Ints>("padding"));
RESNET_JAX_HANDLER(resnet_jax_bn_pool_gradient_sums, PoolGradientSums, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::U8>>()
                       .Arg<Channels>().Arg<Channels>()
                       .Ret<Channels>().Ret<Channels>()
                       .Attr<float>("epsilon")
                       .Attr<Ints>("window").Attr<Ints>("strides").Attr<Ints>("padding"));
RESNET_JAX_HANDLER(resnet_jax_bn_pool_gradient, PoolGradient, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::U8>>()
                       .Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>().Arg<Channels>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<float>("epsilon")
                       .Attr<Ints>("window").Attr<Ints>("strides").Attr<Ints>("padding"));

}  // namespace resnet_jax
