// Shared by all operations: the lock, the threads, the scratch memory, the plan cache, the errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace resnet_jax {

namespace ffi = ::xla::ffi;

// Defines and exports the FFI handler `name`; everything else in the library is hidden.
#define RESNET_JAX_HANDLER(name, implementation, ...)                                              \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame* frame); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, implementation, __VA_ARGS__)

// Memory that grows to the largest request and is then reused. Only the holder of the Turn may use it.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* Reserve(size_t bytes);  // 64-byte aligned; earlier contents are lost

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// The right to run on the machine's cores, held for one FFI call.
//
// XLA runs independent calls on several threads at once. Without turns each call starts its own OpenMP team, and the
// spinning barriers of the teams block each other (calls of 5 ms took 500 ms). libgomp keeps a team of threads for
// every thread that has ever entered a parallel region. So all calls run on one thread, and a process has one team.
class Turn {
 public:
  // Runs task when it is its turn, with a team of the size that the calling thread's affinity allows. task must not
  // throw.
  static void Run(const std::function<void(const Turn&)>& task);

  int threads() const { return threads_; }
  dnnl::engine& engine() const;
  dnnl::stream& stream() const;
  Scratch& scratchpad() const;  // oneDNN's own temporary memory, and the points of Winograd's form
  Scratch& weights() const;     // weights in another layout, and transformed kernels
  Scratch& partials() const;    // per-chunk sums of reductions

 private:
  explicit Turn(int threads) : threads_(threads) {}
  int threads_;
};

// Everything that determines the code that oneDNN generates: dimensions, attributes, data type, thread count.
using PlanKey = std::vector<int64_t>;

struct PlanKeyHash {
  size_t operator()(const PlanKey& key) const;
};

// Primitives by key. Creating one takes milliseconds, as oneDNN generates code; a lookup takes under a microsecond.
template <typename Plan>
class PlanCache {
 public:
  // Calls make at most once per key. The Turn of the caller serves as the lock.
  template <typename Make>
  Plan& Get(const Turn&, const PlanKey& key, Make make) {
    auto found = plans_.find(key);
    if (found != plans_.end()) return *found->second;
    if (plans_.size() >= kCapacity) plans_.clear();  // such a program compiles for hours anyway
    return *plans_.emplace(key, std::make_unique<Plan>(make())).first->second;
  }

 private:
  static constexpr size_t kCapacity = 4096;
  std::unordered_map<PlanKey, std::unique_ptr<Plan>, PlanKeyHash> plans_;
};

// Kernels in the layout of a primitive, kept from call to call.
//
// With few images it takes longer to convert a kernel than to use it. The key contains a digest of the kernel, so an
// entry is what the conversion would give again. A full cache removes the oldest kernels that are out of use. It keeps
// those in use: a network that is larger than the cache asks for its kernels in turn, and without this rule each kernel
// would be removed before its next use.
class KernelCache {
 public:
  // The converted kernel of `bytes` bytes, valid during this Turn. Calls make(data) unless the kernel is kept.
  template <typename Make>
  void* Get(const Turn& turn, const PlanKey& key, size_t bytes, Make make) {
    ++calls_;
    auto found = kernels_.find(key);
    if (found == kernels_.end()) {
      if (!MakeRoom(bytes)) {
        void* data = turn.weights().Reserve(bytes);
        make(data);
        return data;
      }
      Kernel kernel = {std::make_unique<Scratch>(), bytes, 0};
      make(kernel.data->Reserve(bytes));
      bytes_ += bytes;
      found = kernels_.emplace(key, std::move(kernel)).first;
    }
    found->second.last_call = calls_;
    return found->second.data->Reserve(0);
  }

 private:
  struct Kernel {
    std::unique_ptr<Scratch> data;
    size_t bytes;
    uint64_t last_call;
  };

  // Removes the oldest kernels until `bytes` more fit. False if kernels in use leave no room.
  bool MakeRoom(size_t bytes);

  static constexpr size_t kCapacity = size_t{1} << 30;
  std::unordered_map<PlanKey, Kernel, PlanKeyHash> kernels_;
  size_t bytes_ = 0;
  uint64_t calls_ = 0;
};

KernelCache& ConvertedKernels(const Turn& turn);

// The key of a kernel in KernelCache: `key`, which says how the kernel is converted, and its digest.
PlanKey KernelKey(PlanKey key, const ffi::AnyBuffer& digest);

// Whether a convolution to y keeps its converted kernel: it has a digest, and y has so few pixels that the conversion
// takes a noticeable part of the time.
inline bool KeepsKernels(const ffi::AnyBuffer& digest, const ffi::AnyBuffer& y) {
  constexpr size_t kPixels = 8192;
  return digest.element_count() > 0 && y.element_count() / static_cast<size_t>(y.dimensions().back()) < kPixels;
}

// Requests 2 MiB pages for a buffer of 64 KiB or more before it is written. XLA maps its temporary memory again in
// each step. With 4 KiB pages, page faults took a tenth of a ResNet-18 step at 96x96, and a third at 28x28.
void ExpectWrites(void* data, size_t bytes);

template <typename Buffer>
void ExpectWrites(const Buffer& buffer) {
  ExpectWrites(buffer.untyped_data(), buffer.size_bytes());
}

// The bias (O,) of `channels` f32 numbers, or nullptr if it has no elements.
const float* BiasOf(const ffi::AnyBuffer& bias, int64_t channels);

// What is added to y, which has the same shape and type, or nullptr if it has no elements.
void* ResidualOf(const ffi::AnyBuffer& residual, const ffi::AnyBuffer& y);

std::string ShapeText(const ffi::AnyBuffer& buffer);  // "f32[128,24,24,64]"

inline bool IsFloatOrBfloat16(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::F32 || buffer.element_type() == ffi::BF16;
}

// Runs body(turn) and converts any exception into an FFI error that names the operation and its operands. XLA does
// not catch exceptions.
template <typename Body, typename... Buffers>
ffi::Error Guarded(const char* operation, Body body, const Buffers&... buffers) {
  const char* kind = nullptr;
  std::string reason;
  const auto attempt = [&](auto function) {
    try {
      function();
    } catch (const dnnl::error& error) {
      kind = "oneDNN: ", reason = error.message;
    } catch (const std::exception& error) {
      kind = "", reason = error.what();
    } catch (...) {
      kind = "", reason = "unknown exception";
    }
  };
  attempt([&] { Turn::Run([&](const Turn& turn) { attempt([&] { body(turn); }); }); });
  if (kind == nullptr) return ffi::Error::Success();
  std::string operands;
  ((operands += (operands.empty() ? "" : ", ") + ShapeText(buffers)), ...);
  return ffi::Error(ffi::ErrorCode::kInternal, std::string(operation) + "(" + operands + "): " + kind + reason);
}

}  // namespace resnet_jax
