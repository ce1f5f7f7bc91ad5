// Max-pool of NHWC activations. The forward call stores one byte per pooled pixel: the index of the
// maximum in its window. So the gradient is a gather without a second forward pass, and always sums in one order.
#include "pooling.h"

namespace resnet_jax {
namespace {

template <typename T>
T* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

ffi::Error Forward(ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::Buffer<ffi::U8>> index,
                   Ints window, Ints strides, Ints padding) {
  return Guarded("max-pool", [&](const Turn& turn) {
    const Window p = WindowOf(x, *y, window, strides, padding);
    const int64_t images = x.dimensions()[0];
    ExpectWrites(*y);
    ExpectWrites(*index);
    if (x.element_type() == ffi::F32) {
      PoolRows<float>(turn, Data<float>(x), images, p, nullptr, Data<float>(*y), index->typed_data());
    } else {
      PoolRows<uint16_t>(turn, Data<uint16_t>(x), images, p, nullptr, Data<uint16_t>(*y), index->typed_data());
    }
  }, x, *y);
}

template <typename T>
void BackwardAs(const Turn& turn, const T* dy, const uint8_t* index, int64_t images, const Window& p, T* dx) {
  const int64_t pooled_size = p.pooled_height * p.pooled_width * p.channels, row_size = p.width * p.channels;
  Parallel(turn, images * p.height, [&](int64_t row) {
    const int64_t at = row / p.height * pooled_size;
    Kernels<T>().max_pool_gradient(dy + at, index + at, p, row % p.height, dx + row * row_size, nullptr);
  });
}

ffi::Error Backward(ffi::AnyBuffer dy, ffi::Buffer<ffi::U8> index, ffi::Result<ffi::AnyBuffer> dx, Ints window,
                    Ints strides, Ints padding) {
  return Guarded("max-pool gradient", [&](const Turn& turn) {
    const Window p = WindowOf(*dx, dy, window, strides, padding);
    const int64_t images = dx->dimensions()[0];
    ExpectWrites(*dx);
    if (dy.element_type() == ffi::F32) {
      BackwardAs<float>(turn, Data<float>(dy), index.typed_data(), images, p, Data<float>(*dx));
    } else {
      BackwardAs<uint16_t>(turn, Data<uint16_t>(dy), index.typed_data(), images, p, Data<uint16_t>(*dx));
    }
  }, dy, *dx);
}

}  // namespace

RESNET_JAX_HANDLER(resnet_jax_max_pool, Forward, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>().Ret<ffi::Buffer<ffi::U8>>()
                       .Attr<Ints>("window").Attr<Ints>("strides").Attr<Ints>("padding"));
RESNET_JAX_HANDLER(resnet_jax_max_pool_gradient, Backward, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::U8>>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("window").Attr<Ints>("strides").Attr<Ints>("padding"));

}  // namespace resnet_jax
