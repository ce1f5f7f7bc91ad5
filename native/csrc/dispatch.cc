// Selects the kernels for the instruction set of this machine, once per process.
#include "oneapi/dnnl/dnnl.hpp"
#include "row_kernels.h"
#include "winograd_kernels.h"

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

namespace v3 {
extern const Winograd kWinograd;
}
namespace v4 {
extern const Winograd kWinograd;
}

namespace {

// The level of x86-64 whose kernels run here: 2, 3 or 4. As for oneDNN, ONEDNN_MAX_CPU_ISA limits it.
int Level() {
  static const int level = [] {
    __builtin_cpu_init();
    const auto allowed = [](dnnl::cpu_isa isa) {
      const int bits = static_cast<int>(isa);
      return (static_cast<int>(dnnl::get_effective_cpu_isa()) & bits) == bits;
    };
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (!v3 || !allowed(dnnl::cpu_isa::avx2)) return 2;
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512cd");
    return v4 && allowed(dnnl::cpu_isa::avx512_core) ? 4 : 3;
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

const Winograd* WinogradHere() { return Level() == 4 ? &v4::kWinograd : Level() == 3 ? &v3::kWinograd : nullptr; }

extern "C" __attribute__((visibility("default"))) int resnet_jax_level() { return Level(); }

}  // namespace resnet_jax
