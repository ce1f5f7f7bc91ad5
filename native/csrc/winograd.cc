// 3x3 convolutions of stride 1 over NHWC activations, float32 or bfloat16, in Winograd's form: forward, input gradient, and weight
// and bias gradient. It also has the weight gradient of other convolutions, as one product of matrices for each tap of
// the kernel. A batch is computed in blocks of tiles, whose points stay in the cache: all threads transform
// the tiles, then multiply at each point, then transform back.
#include "winograd_kernels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "parallel.h"
#include "runtime.h"

namespace resnet_jax {
namespace {

using Ints = ffi::Span<const int64_t>;
using Pair = std::array<int64_t, 2>;  // along H and W

constexpr int64_t kWinogradKernel = -1;  // begins the key of a transformed kernel; convolution.cc has other numbers
constexpr int64_t kTilesInTask = 8;
// Tiles in a block of one thread, and in one that all threads share. With 128 shared tiles the weight gradients of
// resnet18 at 96x96 took 1.4 to 1.8 times as long (2 cores of a Zen 4; on a Zen 3 within the noise).
constexpr int64_t kTilesInBlock = 48, kTilesInSharedBlock = 60;
constexpr int64_t kTilesOfThread = 96;  // with fewer for each thread, all threads share the blocks

// The direct convolution: a block has 2 MiB of pixels, one for each tap, as far as that is between 64 and 512 tiles.
int64_t SlotsOfTaps(int64_t floats) { return std::clamp((int64_t{1} << 19) / floats, int64_t{64}, int64_t{512}); }

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// One convolution: its images, its tiles, and the blocks in which it is computed.
struct Shape {
  Tiles in, out;  // the tiles as they lie in the padded images, and in the output
  int64_t inputs, outputs;  // panels
  int64_t tiles, points;
  int64_t slots;            // tiles in a block, at most
  bool shared;              // by all threads; else each thread computes blocks of its own
  int64_t v_stride, m_stride;
  const WinogradKernels* kernels;
  const WinogradProducts* products;

  // x (N, H, W, C) is convolved to y (N, H', W', O) by a window of `window` x `window` or, for tiles of one pixel, of
  // any size and stride.
  static Shape Of(const ffi::AnyBuffer& images, const ffi::AnyBuffer& results, int64_t top, int64_t left, int64_t tile,
                  int threads, bool shared, Pair window = {3, 3}, Pair strides = {1, 1}) {
    Shape s;
    const auto x = images.dimensions(), y = results.dimensions();
    const Winograd* here = WinogradHere();
    if (here == nullptr) throw std::invalid_argument("this CPU has no AVX2");
    const auto& kernels = images.element_type() == ffi::BF16 ? here->of_bfloat16 : here->of_float;
    s.kernels = std::find_if(std::begin(kernels), std::end(kernels),
                             [&](const WinogradKernels& kernels) { return kernels.tile == tile; });
    if (s.kernels == std::end(kernels)) throw std::invalid_argument("tiles are 1, 3 or 4 pixels wide");
    s.products = &here->products;
    const bool taps = tile == 1;
    const int64_t rows = (y[1] + tile - 1) / tile, columns = (y[2] + tile - 1) / tile;
    s.in = {x[1], x[2], x[3], rows, columns, taps ? strides[0] : tile, taps ? strides[1] : tile, top, left,
            window[0], window[1]};
    s.out = {y[1], y[2], y[3], rows, columns, tile, tile, 0, 0, 0, 0};
    s.inputs = x[3] / kPanel, s.outputs = y[3] / kPanel;
    s.tiles = x[0] * rows * columns;
    if (s.tiles == 0) throw std::invalid_argument("expected at least one image and one pixel");
    s.points = taps ? window[0] * window[1] : (tile + 2) * (tile + 2);
    s.shared = shared || s.tiles < kTilesOfThread * threads;
    const int64_t most = taps ? SlotsOfTaps(s.points * std::max(x[3], y[3])) : s.shared ? kTilesInSharedBlock : kTilesInBlock;
    int64_t blocks = (s.tiles + most - 1) / most;
    if (!s.shared) blocks = RoundUp(blocks, threads);
    s.slots = RoundUp((s.tiles + blocks - 1) / blocks, s.products->rows);
    s.v_stride = s.inputs * s.slots * kPanel + kPanel;
    s.m_stride = s.outputs * s.slots * kPanel + kPanel;
    return s;
  }

  int64_t kernel_stride() const { return outputs * in.channels * kPanel + kPanel; }
  int64_t blocks() const { return (tiles + slots - 1) / slots; }
  int64_t count(int64_t block) const { return std::min(slots, tiles - block * slots); }
  int64_t tasks(int64_t block) const { return (count(block) + kTilesInTask - 1) / kTilesInTask; }
  int64_t all_tasks() const { return (blocks() - 1) * tasks(0) + tasks(blocks() - 1); }
  Range range(int64_t block, int64_t task) const {
    const int64_t slot = task * kTilesInTask;
    return {block * slots + slot, std::min(kTilesInTask, count(block) - slot), slot, slots};
  }
  int64_t steps() const { return (outputs + products->panels - 1) / products->panels; }
  int64_t all_products() const { return points * steps(); }
  // Calls body(point, first panel of O, number of panels) for product i of a block.
  template <typename Body>
  void Products(int64_t i, Body body) const {
    const int64_t panel = i % steps() * products->panels;
    if (outputs - panel >= products->panels) return body(i / steps(), panel, products->panels);
    for (int64_t p = panel; p < outputs; ++p) body(i / steps(), p, int64_t{1});
  }
};

// The kernel (3, 3, C, O) as (3, 3, O, C).
void Transpose(const Turn& turn, const float* kernel, int64_t c, int64_t o, float* transposed) {
  constexpr int64_t kBlock = 16;
  Parallel(turn, 9 * (c / kBlock), [&](int64_t i) {
    const int64_t tap = i / (c / kBlock), row = i % (c / kBlock) * kBlock;
    const float* from = kernel + (tap * c + row) * o;
    float* to = transposed + tap * c * o + row;
    for (int64_t column = 0; column < o; column += kBlock) {
      for (int64_t b = 0; b < kBlock; ++b) {
        for (int64_t a = 0; a < kBlock; ++a) to[(column + b) * c + a] = from[a * o + column + b];
      }
    }
  });
}

// u for a kernel (3, 3, C, O), where C are the channels that are summed.
void TransformKernel(const Turn& turn, const Shape& s, const float* kernel, bool flip, float* u) {
  const int64_t c = s.in.channels, o = s.out.channels;
  Parallel(turn, c, [&](int64_t row) {
    for (int64_t panel = 0; panel < s.outputs; ++panel) {
      s.kernels->kernel(kernel + row * o + panel * kPanel, c * o, flip, u + (panel * c + row) * kPanel,
                        s.kernel_stride());
    }
  });
}

// y = relu?(conv(x) + bias? + residual?), where u is the transformed kernel.
//
// With enough tiles, each thread computes blocks of its own, and no thread waits for another. Otherwise all threads
// share each block, so that u, which may be larger than the caches, is read once for all of them.
void Convolve(const Turn& turn, const Shape& s, const void* x, const float* u, const WinogradAdded& added, void* y) {
  const int64_t teams = s.shared ? 1 : turn.threads();
  float* space = static_cast<float*>(
      turn.scratchpad().Reserve(teams * s.points * (s.v_stride + s.m_stride) * static_cast<int64_t>(sizeof(float))));
  const auto image = [&](float* v, int64_t block, int64_t task) {
    s.kernels->image(x, s.in, s.range(block, task), v, s.v_stride);
  };
  const auto products = [&](const float* v, float* m, int64_t block, int64_t point, int64_t panel, int64_t panels) {
    s.products->forward(v + point * s.v_stride, u + point * s.kernel_stride() + panel * s.in.channels * kPanel,
                        s.inputs, s.slots, s.count(block), panels, m + point * s.m_stride + panel * s.slots * kPanel);
  };
  const auto output = [&](const float* m, int64_t block, int64_t task) {
    s.kernels->output(m, s.m_stride, s.out, s.range(block, task), added, y);
  };
  if (s.shared) {
    float *v = space, *m = v + s.points * s.v_stride;
    for (int64_t block = 0; block < s.blocks(); ++block) {
      Parallel(turn, s.tasks(block), [&](int64_t task) { image(v, block, task); });
      Parallel(turn, s.all_products(), [&](int64_t i) {
        s.Products(i, [&](auto... at) { products(v, m, block, at...); });
      });
      Parallel(turn, s.tasks(block), [&](int64_t task) { output(m, block, task); });
    }
    return;
  }
  Parallel(turn, teams, [&](int64_t team) {
    float *v = space + team * s.points * (s.v_stride + s.m_stride), *m = v + s.points * s.v_stride;
    for (int64_t block = team * s.blocks() / teams; block < (team + 1) * s.blocks() / teams; ++block) {
      for (int64_t task = 0; task < s.tasks(block); ++task) image(v, block, task);
      for (int64_t i = 0; i < s.all_products(); ++i) s.Products(i, [&](auto... at) { products(v, m, block, at...); });
      for (int64_t task = 0; task < s.tasks(block); ++task) output(m, block, task);
    }
  });
}

float* KernelSpace(const Turn& turn, const Shape& s, int64_t more) {
  return static_cast<float*>(turn.weights().Reserve((s.points * s.kernel_stride() + more) * sizeof(float)));
}

// x (N, H, W, C), y (N, H', W', O) of one type, w (kh, kw, C, O). Winograd's form and the outputs of tiles of one pixel
// have a 3x3 kernel, or one of any size.
void Check(const ffi::AnyBuffer& x, const ffi::AnyBuffer& w, const ffi::AnyBuffer& y, Ints padding, int64_t tile,
           bool weights = false) {
  for (const ffi::AnyBuffer* buffer : {&x, &w, &y}) {
    if (buffer->dimensions().size() != 4) {
      throw std::invalid_argument("expected x and y (N, H, W, C) and weights (kh, kw, C, O)");
    }
  }
  const auto type = x.element_type();
  if (y.element_type() != type || (type != ffi::F32 && type != ffi::BF16) || w.element_type() != ffi::F32) {
    throw std::invalid_argument("expected x and y of f32 or bf16, both alike, and weights of f32");
  }
  const auto xd = x.dimensions(), wd = w.dimensions(), yd = y.dimensions();
  if (padding.size() != 4) throw std::invalid_argument("expected 4 numbers of padding");
  if (tile == 1 ? !weights : wd[0] != 3 || wd[1] != 3) {
    throw std::invalid_argument("expected weights (3, 3, C, O); tiles of one pixel are for weight gradients only");
  }
  if (xd[0] != yd[0] || wd[2] != xd[3] || wd[3] != yd[3] || wd[2] % kPanel || wd[3] % kPanel) {
    throw std::invalid_argument("expected C and O of the images in the weights, as multiples of 16, and N images twice");
  }
}

// padding: top, bottom, left, right.
ffi::Error Forward(ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias, ffi::Result<ffi::AnyBuffer> y,
                   Ints padding, int64_t tile) {
  return Guarded("Winograd convolution", [&](const Turn& turn) {
    Check(x, w, *y, padding, tile);
    const Shape s = Shape::Of(x, *y, padding[0], padding[2], tile, turn.threads(), false);
    ExpectWrites(*y);
    float* u = KernelSpace(turn, s, 0);
    TransformKernel(turn, s, static_cast<const float*>(w.untyped_data()), false, u);
    Convolve(turn, s, x.untyped_data(), u, {BiasOf(bias, s.out.channels)}, y->untyped_data());
  }, x, w, bias, *y);
}

// y = relu?(conv(x, w) + bias + residual?); residual and digest are empty if they are missing.
ffi::Error Inference(ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias, ffi::AnyBuffer residual,
                     ffi::AnyBuffer digest, ffi::Result<ffi::AnyBuffer> y, Ints padding, int64_t tile, bool relu) {
  return Guarded("Winograd convolution for inference", [&](const Turn& turn) {
    Check(x, w, *y, padding, tile);
    const Shape s = Shape::Of(x, *y, padding[0], padding[2], tile, turn.threads(), false);
    ExpectWrites(*y);
    const auto transform = [&](void* u) {
      TransformKernel(turn, s, static_cast<const float*>(w.untyped_data()), false, static_cast<float*>(u));
    };
    float* u;
    if (KeepsKernels(digest, *y)) {
      const PlanKey key = KernelKey({kWinogradKernel, tile, s.in.channels, s.out.channels}, digest);
      u = static_cast<float*>(
          ConvertedKernels(turn).Get(turn, key, s.points * s.kernel_stride() * sizeof(float), transform));
    } else {
      transform(u = KernelSpace(turn, s, 0));
    }
    const WinogradAdded added = {BiasOf(bias, s.out.channels), ResidualOf(residual, *y), relu};
    Convolve(turn, s, x.untyped_data(), u, added, y->untyped_data());
  }, x, w, bias, residual, *y);
}

// dx is the convolution of dy with the kernel whose taps are reversed and whose channels are exchanged.
ffi::Error BackwardData(ffi::AnyBuffer dy, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> dx, Ints padding,
                        int64_t tile) {
  return Guarded("Winograd input gradient", [&](const Turn& turn) {
    Check(*dx, w, dy, padding, tile);
    const Shape s = Shape::Of(dy, *dx, 2 - padding[0], 2 - padding[2], tile, turn.threads(), false);
    ExpectWrites(*dx);
    float* u = KernelSpace(turn, s, w.element_count());
    float* transposed = u + s.points * s.kernel_stride();
    Transpose(turn, static_cast<const float*>(w.untyped_data()), s.out.channels, s.in.channels, transposed);
    TransformKernel(turn, s, transposed, true, u);
    Convolve(turn, s, dy.untyped_data(), u, {}, dx->untyped_data());
  }, dy, w, *dx);
}

// The gradient of the kernel from the gradient of u.
void StoreGradient(const Turn& turn, const Shape& s, const float* u, float* kernel) {
  const int64_t c = s.in.channels, o = s.out.channels;
  Parallel(turn, c, [&](int64_t row) {
    for (int64_t panel = 0; panel < s.outputs; ++panel) {
      const float* from = u + (panel * c + row) * kPanel;
      float* to = kernel + row * o + panel * kPanel;
      if (s.kernels->kernel_gradient) {
        s.kernels->kernel_gradient(from, s.kernel_stride(), to, c * o);
      } else {
        for (int64_t tap = 0; tap < s.points; ++tap) {
          std::memcpy(to + tap * c * o, from + tap * s.kernel_stride(), kPanel * sizeof(float));
        }
      }
    }
  });
}

// dbias is (O,) or empty. tile: 1 for a kernel of any size and any strides, else that of the 3x3 kernel of stride 1.
ffi::Error BackwardWeights(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::Result<ffi::AnyBuffer> dw,
                           ffi::Result<ffi::AnyBuffer> dbias, Ints padding, int64_t tile, Ints strides) {
  return Guarded(tile == 1 ? "weight gradient by taps" : "Winograd weight gradient", [&](const Turn& turn) {
    Check(x, *dw, dy, padding, tile, true);
    if (strides.size() != 2) throw std::invalid_argument("expected 2 strides");
    const Shape s = Shape::Of(x, dy, padding[0], padding[2], tile, turn.threads(), true,
                              {dw->dimensions()[0], dw->dimensions()[1]}, {strides[0], strides[1]});
    const int64_t o = s.out.channels, z_points = tile == 1 ? 1 : s.points;
    const int64_t floats = s.points * s.v_stride + z_points * s.m_stride;
    float* v = static_cast<float*>(turn.scratchpad().Reserve(floats * static_cast<int64_t>(sizeof(float))));
    float* z = v + s.points * s.v_stride;
    float* u = KernelSpace(turn, s, 0);
    ExpectWrites(*dw);
    const bool has_bias = dbias->element_count() > 0;
    float* sums = has_bias ? static_cast<float*>(turn.partials().Reserve(s.all_tasks() * o * sizeof(float))) : nullptr;
    for (int64_t block = 0; block < s.blocks(); ++block) {
      Parallel(turn, s.tasks(block), [&](int64_t task) {
        const Range range = s.range(block, task);
        s.kernels->image(x.untyped_data(), s.in, range, v, s.v_stride);
        s.kernels->gradient(dy.untyped_data(), s.out, range, z, s.m_stride,
                            sums ? sums + (block * s.tasks(0) + task) * o : nullptr);
      });
      Parallel(turn, s.all_products(), [&](int64_t i) {
        s.Products(i, [&](int64_t point, int64_t panel, int64_t panels) {
          s.products->gradient(v + point * s.v_stride, z + point % z_points * s.m_stride + panel * s.slots * kPanel,
                               s.inputs, s.slots, s.count(block), panels, block == 0,
                               u + point * s.kernel_stride() + panel * s.in.channels * kPanel);
        });
      });
    }
    StoreGradient(turn, s, u, static_cast<float*>(dw->untyped_data()));
    if (has_bias) {
      float* bias = static_cast<float*>(dbias->untyped_data());
      SumParts(turn, sums, s.all_tasks(), o, [&](int64_t i, double total) { bias[i] = static_cast<float>(total); });
    }
  }, x, dy, *dw, *dbias);
}

}  // namespace

RESNET_JAX_HANDLER(resnet_jax_winograd_forward, Forward, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("tile"));
RESNET_JAX_HANDLER(resnet_jax_winograd_inference, Inference, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("tile")
                       .Attr<bool>("relu"));
RESNET_JAX_HANDLER(resnet_jax_winograd_backward_data, BackwardData, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("tile"));
RESNET_JAX_HANDLER(resnet_jax_winograd_backward_weights, BackwardWeights, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("tile")
                       .Attr<Ints>("strides"));

}  // namespace resnet_jax
