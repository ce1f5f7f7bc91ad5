// Selects the row kernels for the instruction set of this machine, once per process.
#include "row_kernels.h"

namespace resnet_jax {

#define DECLARE(isa)                          \
  namespace isa {                             \
  extern const RowKernels<float> kFloat;      \
  extern const RowKernels<uint16_t> kBfloat16; \
  }
DECLARE(v2)
DECLARE(v3)
DECLARE(v4)
#undef DECLARE

namespace {

int Level() {
  static const int level = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd")) {
      return 4;
    }
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    return v3 ? 3 : 2;
  }();
  return level;
}

}  // namespace

template <>
const RowKernels<float>& Kernels<float>() {
  return Level() == 4 ? v4::kFloat : Level() == 3 ? v3::kFloat : v2::kFloat;
}

template <>
const RowKernels<uint16_t>& Kernels<uint16_t>() {
  return Level() == 4 ? v4::kBfloat16 : Level() == 3 ? v3::kBfloat16 : v2::kBfloat16;
}

}  // namespace resnet_jax
