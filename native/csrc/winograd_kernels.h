// The vectorised inner loops of the 3x3 convolutions in Winograd's form, over panels of 16 channels.
//
// The convolution of a tile of m x m output pixels is A(G(kernel) * B(image)): the transforms A, B and G are linear
// along rows and along columns, and * multiplies (m + 2) x (m + 2) pairs of numbers, the points. Over many tiles the
// products at one point are a product of matrices. Source: arXiv:1509.09308, section 4.
//
// The kernels are single-threaded and independent of XLA and oneDNN. Images are float or bfloat16, as their table says;
// everything between the transforms is float. C and O are multiples of kPanel. The layouts:
//   v       (points, C / kPanel, slots, kPanel)      transformed images, one slot for each tile of the block
//   m, z    (points, O / kPanel, slots, kPanel)      products and transformed gradients
//   u       (points, O / kPanel, C, kPanel)          transformed kernels and their gradients
// `stride` is the distance between two points of v, m and z. It is no power of two, so that the points of a tile do
// not share one set of the cache.
#pragma once

#include <cstdint>

namespace resnet_jax {

constexpr int64_t kPanel = 16;

// The tiles of a batch of images, counted along rows, image by image. Padding pixels are zeros.
struct Tiles {
  int64_t height, width, channels;  // of the images to read or to write
  int64_t rows, columns;            // tiles in an image
  int64_t down, right;              // from one tile to the next, in pixels
  int64_t top, left;                // padding
  int64_t window_h, window_w;       // of the kernel; for tiles of one pixel only
};

// Some tiles: number `first` and the following ones. They lie in slot `slot` and the following ones of a block.
struct Range {
  int64_t first, count, slot, slots;
};

// What is added to the output. residual has the shape and the type of y.
struct WinogradAdded {
  const float* bias = nullptr;
  const void* residual = nullptr;
  bool relu = false;
};

// Tiles of one pixel (m = 1) are the direct convolution: the points are the taps of the kernel, of any size and stride,
// and the transforms copy. They serve weight gradients only, so their output and kernel functions are null; z has one
// point, which all taps share.
struct WinogradKernels {
  int64_t tile;  // m

  // v = B(x) for each tile of the range.
  void (*image)(const void* x, const Tiles& tiles, Range range, float* v, int64_t stride);
  // z = the transpose of A, applied to dy; sum (C,) = the sum of dy over the pixels of the range, if it is not null.
  void (*gradient)(const void* dy, const Tiles& tiles, Range range, float* z, int64_t stride, float* sum);
  // y = relu?(A(m) + bias? + residual?); bias and residual may be null.
  void (*output)(const float* m, int64_t stride, const Tiles& tiles, Range range, const WinogradAdded& added, void* y);

  // One row of C of one panel of O: u = G(kernel), where `kernel` and u point to the panel's 16 numbers. Numbers of
  // neighbouring taps of the kernel are `tap` apart, and those of points of u `stride`. `flip` reverses the taps.
  void (*kernel)(const float* kernel, int64_t tap, bool flip, float* u, int64_t stride);
  // The transpose: the gradient of the kernel from the gradient of u.
  void (*kernel_gradient)(const float* u, int64_t stride, float* kernel, int64_t tap);
};

struct WinogradProducts {
  int64_t rows;    // slots are padded to a multiple of it
  int64_t panels;  // the largest number of panels of O in one call; the only other number is 1

  // At one point, for `panels` panels of O: m = v * u. v has `inputs` panels of C, and `count` slots in use.
  void (*forward)(const float* v, const float* u, int64_t inputs, int64_t slots, int64_t count, int64_t panels,
                  float* m);
  // The same for u += v^T * z, or u = v^T * z if `first`.
  void (*gradient)(const float* v, const float* z, int64_t inputs, int64_t slots, int64_t count, int64_t panels,
                   bool first, float* u);
};

constexpr int64_t kSizesOfTiles = 3;

// Everything for one instruction set: the kernels for each size of tiles.
struct Winograd {
  WinogradProducts products;
  WinogradKernels of_float[kSizesOfTiles], of_bfloat16[kSizesOfTiles];
};

// The kernels for the instruction set of this machine; null if it has less than AVX2.
const Winograd* WinogradHere();

}  // namespace resnet_jax
