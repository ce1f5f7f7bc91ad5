#include "runtime.h"

#include <malloc.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace resnet_jax {
namespace {

constexpr size_t kAlignment = 64;  // one cache line, one AVX-512 register

// Threads that OMP_NUM_THREADS allows, read before anything here changes the setting.
int AllowedThreads() {
  static const int allowed = omp_get_max_threads();
  return allowed;
}

std::atomic<int> limit{std::numeric_limits<int>::max()};  // see resnet_jax_limit_threads

// The cores of the calling thread's affinity, which may have changed since libgomp was loaded. OMP_NUM_THREADS, which
// the user sets, comes before the limit.
int Threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return AllowedThreads();  // more than 1024 CPUs
  const int cpus = std::max(CPU_COUNT(&set), 1);
  return std::min(cpus, std::getenv("OMP_NUM_THREADS") ? AllowedThreads() : std::max(limit.load(), 1));
}

// The thread that owns the process's OpenMP team. It runs one task at a time.
class TeamThread {
 public:
  TeamThread() { std::thread([this] { Loop(); }).detach(); }

  void Run(const std::function<void()>& task) {
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = &task;
    changed_.notify_all();
    changed_.wait(lock, [this] { return task_ == nullptr; });
  }

 private:
  void Loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return task_ != nullptr; });
      lock.unlock();
      (*task_)();
      lock.lock();
      task_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* task_ = nullptr;
};

}  // namespace

Scratch::~Scratch() { std::free(data_); }

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

void Turn::Run(const std::function<void(const Turn&)>& task) {
  static auto* mutex = new std::mutex;
  const Turn turn(Threads());
  const std::lock_guard<std::mutex> lock(*mutex);
  const auto run = [&] {
    omp_set_num_threads(turn.threads());
    task(turn);
  };
  if (turn.threads() == 1) return run();  // one thread needs no team
  static auto* team = new TeamThread;
  team->Run(run);
}

extern "C" __attribute__((visibility("default"))) void resnet_jax_limit_threads(int threads) { limit = threads; }

dnnl::engine& Turn::engine() const {
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::stream& Turn::stream() const {
  static auto* stream = new dnnl::stream(engine());
  return *stream;
}

// The following objects are never destroyed, since threads of XLA may outlive static objects.
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

KernelCache& ConvertedKernels(const Turn&) {
  static auto* cache = new KernelCache;
  return *cache;
}

bool KernelCache::MakeRoom(size_t bytes) {
  constexpr uint64_t kRounds = 8;  // a kernel is in use until so many calls for each kept kernel follow its last
  while (bytes_ + bytes > kCapacity) {
    const auto oldest = std::min_element(kernels_.begin(), kernels_.end(), [](const auto& a, const auto& b) {
      return a.second.last_call < b.second.last_call;
    });
    if (oldest == kernels_.end() || calls_ - oldest->second.last_call <= kRounds * kernels_.size()) return false;
    bytes_ -= oldest->second.bytes;
    kernels_.erase(oldest);
  }
  return true;
}

PlanKey KernelKey(PlanKey key, const ffi::AnyBuffer& digest) {
  const auto* words = static_cast<const uint32_t*>(digest.untyped_data());
  key.insert(key.end(), words, words + digest.element_count());
  return key;
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

const float* BiasOf(const ffi::AnyBuffer& bias, int64_t channels) {
  const int64_t count = static_cast<int64_t>(bias.element_count());
  if (count == 0) return nullptr;
  if (count != channels || bias.element_type() != ffi::F32) {
    throw std::invalid_argument("expected a bias (O,) of f32, or of no elements");
  }
  return static_cast<const float*>(bias.untyped_data());
}

void* ResidualOf(const ffi::AnyBuffer& residual, const ffi::AnyBuffer& y) {
  if (residual.element_count() == 0) return nullptr;
  const auto mine = residual.dimensions(), wanted = y.dimensions();
  if (residual.element_type() != y.element_type() || !std::equal(mine.begin(), mine.end(), wanted.begin(), wanted.end())) {
    throw std::invalid_argument("expected a residual like y, or of no elements");
  }
  return residual.untyped_data();
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
