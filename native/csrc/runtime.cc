#include "runtime.h"

#include <malloc.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <sstream>

namespace resnet_jax {
namespace {

constexpr size_t kAlignment = 64;  // one cache line, one AVX-512 register

std::mutex& Mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

// Threads that OMP_NUM_THREADS allows, read before anything here changes the setting.
int AllowedThreads() {
  static const int allowed = omp_get_max_threads();
  return allowed;
}

int ThreadsOfAffinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return AllowedThreads();  // more than 1024 CPUs
  const int cpus = std::max(CPU_COUNT(&set), 1);
  return std::getenv("OMP_NUM_THREADS") ? std::min(cpus, AllowedThreads()) : cpus;
}

}  // namespace

void* Scratch::Reserve(size_t bytes) {
  if (bytes <= size_) return data_;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::free(data_);
  size_ = 0;
  data_ = std::aligned_alloc(kAlignment, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  size_ = rounded;
  return data_;
}

Turn::Turn() : lock_(Mutex()), threads_(ThreadsOfAffinity()) { omp_set_num_threads(threads_); }

dnnl::engine& Turn::engine() const {
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::stream& Turn::stream() const {
  static auto* stream = new dnnl::stream(engine());
  return *stream;
}

Scratch& Turn::scratchpad() const {
  static Scratch* scratch = new Scratch;
  return *scratch;
}

Scratch& Turn::weights() const {
  static Scratch* scratch = new Scratch;
  return *scratch;
}

Scratch& Turn::partials() const {
  static Scratch* scratch = new Scratch;
  return *scratch;
}

size_t PlanKeyHash::operator()(const PlanKey& key) const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over words
  for (int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
  return hash;
}

void ExpectWrites(void* data, size_t bytes) {
  constexpr size_t kWorthwhile = size_t{64} << 10;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < kWorthwhile) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = first / kHugePage * kHugePage;
  const uintptr_t end = (first + bytes + kHugePage - 1) / kHugePage * kHugePage;
  // This is advice: if the kernel refuses, the results are the same. Unmapped pages are skipped.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

std::string ShapeText(const ffi::AnyBuffer& buffer) {
  std::ostringstream text;
  text << buffer.element_type() << '[';
  const char* separator = "";
  for (int64_t size : buffer.dimensions()) {
    text << separator << size;
    separator = ",";
  }
  text << ']';
  return text.str();
}

}  // namespace resnet_jax
