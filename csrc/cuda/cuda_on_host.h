// Compiles a .cu with a C++ compiler and runs its kernels on the host, so that their logic can be
// tested under sanitizers on machines without a GPU. Never part of what ships.
//
// Each thread of a block (a lane) runs on a fiber of its own until it ends or waits for others, in
// an order that is shuffled anew at every barrier; so does each block of a grid. A fiber is made
// only where all others are waiting: kernels without barriers take one. What this finds:
//  - a missing barrier: results change with the seed, or read NaN out of shared memory, all bytes
//    of which are 0xff when a block begins;
//  - a barrier that not all lanes reach, or that they reach at different places: an Error;
//  - accesses beyond global or dynamic shared memory: both are heap blocks of exactly the size that
//    was asked for, so AddressSanitizer sees them (and UBSan, for arrays of known size);
//  - launches that no device accepts: an Error.
// What it cannot find: races between blocks or warps that a shuffled order of whole stretches
// between barriers does not show, and anything about speed.
//
// One launch at a time, under a lock: the state of the running lane is global.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/half.h"
#include "cuda/fiber_on_host.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

namespace headrace::on_host {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)  // NOLINT: as CUDA's
      : x(x), y(y), z(z) {}
  constexpr uint64_t size() const { return uint64_t{x} * y * z; }
};

// Of the lane that is running.
inline Dim3 thread_idx, block_idx, block_dim, grid_dim;
inline unsigned char* dynamic_shared = nullptr;

// Of the calling thread. Work is done on device 0, which is the only one.
inline thread_local int current_device = 0;

inline uint64_t launch_seed = 1;
// The order in which lanes and blocks run follows from it.
inline void set_seed(uint64_t seed) {
  launch_seed = seed;
}

// The least that devices from sm_80 on offer.
constexpr uint64_t kMaxThreads = 1024;
inline uint64_t max_grid_yz = 65535;  // tests set less, to see grids cut
constexpr size_t kMaxSharedBytes = 163 * 1024;
constexpr unsigned kWarp = 32;

// The lanes of one block.
class Block {
 public:
  Block(Dim3 index, Dim3 threads, std::vector<std::unique_ptr<Fiber>>& fibers, std::mt19937_64& rng)
      : index_(index), threads_(threads), fibers_(fibers), rng_(rng), lanes_(threads.size()) {}

  void run(const std::function<void()>& kernel) {
    Block* outer = std::exchange(current_, this);
    struct Restore {
      Block* outer;
      ~Restore() { current_ = outer; }
    } restore{outer};
    std::vector<unsigned> order(lanes_.size());
    for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::shuffle(order, rng_);
    for (unsigned lane : order) start(lane, kernel);
    while (release()) {
      std::ranges::shuffle(order, rng_);
      for (unsigned lane : order) {
        if (lanes_[lane].state == State::kReady) resume(lane);
      }
    }
  }

  static Block& current() { return *current_; }

  void block_barrier(const std::source_location& at) { wait(State::kAtBlock, 0, at); }
  void warp_barrier(unsigned mask, const std::source_location& at) {
    if ((mask >> (running_ % kWarp) & 1) == 0) fail_at(at, "a lane waits that its mask leaves out");
    wait(State::kAtWarp, mask, at);
  }

  // Publishes 64 bits to the lanes of `mask` and returns once all of them have.
  void publish(unsigned mask, uint64_t bits, const std::source_location& at) {
    lanes_[running_].pending = bits;
    warp_barrier(mask, at);
  }
  // What lane `lane` of this warp published.
  uint64_t published(unsigned lane, unsigned mask, const std::source_location& at) const {
    if ((mask >> lane & 1) == 0)
      fail_at(at, str("reads lane ", lane, ", which the mask leaves out"));
    return lanes_[running_ / kWarp * kWarp + lane].visible;
  }
  unsigned lane_in_warp() const { return running_ % kWarp; }

 private:
  enum class State { kReady, kAtBlock, kAtWarp, kDone };
  struct Lane {
    State state = State::kReady;
    unsigned mask = 0;
    std::source_location at;
    Fiber* fiber = nullptr;
    uint64_t pending = 0, visible = 0;
  };

  void start(unsigned lane, const std::function<void()>& kernel) {
    auto idle = std::ranges::find_if(fibers_, [](const auto& fiber) { return fiber->ended(); });
    if (idle == fibers_.end()) idle = fibers_.insert(idle, std::make_unique<Fiber>());
    lanes_[lane].fiber = idle->get();
    lanes_[lane].fiber->assign(kernel);
    resume(lane);
  }

  void resume(unsigned lane) {
    running_ = lane;
    thread_idx = {lane % threads_.x, lane / threads_.x % threads_.y,
                  lane / threads_.x / threads_.y};
    lanes_[lane].fiber->resume();
    if (lanes_[lane].fiber->ended()) lanes_[lane].state = State::kDone;
  }

  void wait(State state, unsigned mask, const std::source_location& at) {
    Lane& lane = lanes_[running_];
    lane.state = state;
    lane.mask = mask;
    lane.at = at;
    lane.fiber->suspend();
  }

  static bool same_place(const Lane& a, const Lane& b) {
    return a.at.line() == b.at.line() && a.at.column() == b.at.column() &&
           std::strcmp(a.at.file_name(), b.at.file_name()) == 0;
  }

  // Lets those go on whose barrier is complete. False if all lanes are done; throws if none is
  // ready and no barrier is complete.
  bool release() {
    bool released = false;
    for (size_t base = 0; base < lanes_.size(); base += kWarp) released |= release_warp(base);
    bool all_done =
        std::ranges::all_of(lanes_, [](const Lane& l) { return l.state == State::kDone; });
    if (released || all_done) return released;
    const Lane& first = *std::ranges::find_if(lanes_, [](const Lane& lane) {
      return lane.state == State::kAtBlock || lane.state == State::kAtWarp;
    });
    bool complete = std::ranges::all_of(lanes_, [&](const Lane& lane) {
      return lane.state == State::kAtBlock && same_place(lane, first);
    });
    if (!complete) diverged(first);
    for (Lane& lane : lanes_) lane.state = State::kReady;
    return true;
  }

  bool release_warp(size_t base) {
    bool released = false;
    size_t end = std::min(base + kWarp, lanes_.size());
    for (size_t i = base; i < end; ++i) {
      Lane& first = lanes_[i];
      if (first.state != State::kAtWarp) continue;
      bool complete = true;
      for (unsigned bit = 0; bit < kWarp && complete; ++bit) {
        if ((first.mask >> bit & 1) == 0) continue;
        complete = base + bit < end && lanes_[base + bit].state == State::kAtWarp &&
                   lanes_[base + bit].mask == first.mask && same_place(lanes_[base + bit], first);
      }
      if (!complete) continue;
      unsigned mask = first.mask;
      for (unsigned bit = 0; bit < kWarp; ++bit) {
        if ((mask >> bit & 1) == 0) continue;
        lanes_[base + bit].visible = lanes_[base + bit].pending;
        lanes_[base + bit].state = State::kReady;
      }
      released = true;
    }
    return released;
  }

  [[noreturn]] void diverged(const Lane& first) const {
    size_t here = 0, done = 0;
    for (const Lane& lane : lanes_) {
      here += lane.state == first.state && same_place(lane, first);
      done += lane.state == State::kDone;
    }
    fail_at(first.at, str("divergent ", first.state == State::kAtBlock ? "barrier" : "warp barrier",
                          ": ", here, " lanes wait here, ", lanes_.size() - here - done,
                          " elsewhere, and ", done, " have returned"));
  }

  [[noreturn]] void fail_at(const std::source_location& at, const std::string& what) const {
    fail(ErrorKind::kExecution, at.file_name(), ":", at.line(), ": block (", index_.x, ", ",
         index_.y, ", ", index_.z, "): ", what);
  }

  static inline Block* current_ = nullptr;
  Dim3 index_;
  Dim3 threads_;
  std::vector<std::unique_ptr<Fiber>>& fibers_;
  std::mt19937_64& rng_;
  std::vector<Lane> lanes_;
  unsigned running_ = 0;
};

inline void check_launch(Dim3 grid, Dim3 threads, size_t shared_bytes) {
  bool fits = grid.size() > 0 && grid.y <= max_grid_yz && grid.z <= max_grid_yz &&
              grid.x <= 0x7fffffff && threads.size() > 0 && threads.size() <= kMaxThreads &&
              threads.z <= 64 && shared_bytes <= kMaxSharedBytes;
  if (fits) return;
  fail(ErrorKind::kExecution, "invalid launch: grid (", grid.x, ", ", grid.y, ", ", grid.z,
       "), block (", threads.x, ", ", threads.y, ", ", threads.z, "), ", shared_bytes,
       " bytes of shared memory");
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
inline std::unique_ptr<unsigned char, Free> make_shared_memory(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  if (bytes > 0) std::memset(memory, 0xff, bytes);
  return std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(memory));
}

// The work of a stream, done when somebody waits for it.
class Queue {
 public:
  void push(std::function<void()> work) { work_.push_back(std::move(work)); }
  void run() {
    std::vector<std::function<void()>> work = std::exchange(work_, {});
    for (const auto& step : work) step();
  }

 private:
  std::vector<std::function<void()>> work_;
};

// Runs `kernel` as every thread of a grid.
inline void run_grid(Dim3 grid, Dim3 threads, size_t shared_bytes,
                     const std::function<void()>& kernel) {
  check_launch(grid, threads, shared_bytes);
  static std::mutex one_at_a_time;
  std::lock_guard lock(one_at_a_time);
  std::mt19937_64 rng(launch_seed);
  std::vector<uint64_t> order(grid.size());
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::shuffle(order, rng);
  grid_dim = grid;
  block_dim = threads;
  // Of one launch: a lane that never ended, after an error, dies with them.
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (uint64_t i : order) {
    auto shared = make_shared_memory(shared_bytes);
    dynamic_shared = shared.get();
    block_idx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                 static_cast<unsigned>(i / grid.x / grid.y)};
    Block(block_idx, threads, fibers, rng).run(kernel);
  }
  dynamic_shared = nullptr;
}

}  // namespace headrace::on_host

#define threadIdx (::headrace::on_host::thread_idx)
#define blockIdx (::headrace::on_host::block_idx)
#define blockDim (::headrace::on_host::block_dim)
#define gridDim (::headrace::on_host::grid_dim)

using dim3 = headrace::on_host::Dim3;
using __half = headrace::Half;
using __nv_bfloat16 = headrace::BFloat16;

inline void __syncthreads(std::source_location at = std::source_location::current()) {
  headrace::on_host::Block::current().block_barrier(at);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location at = std::source_location::current()) {
  headrace::on_host::Block::current().warp_barrier(mask, at);
}

namespace headrace::on_host {

template <class T>
T exchange(unsigned mask, T value, unsigned from, const std::source_location& at) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  Block::current().publish(mask, bits, at);
  bits = Block::current().published(from, mask, at);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace headrace::on_host

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              std::source_location at = std::source_location::current()) {
  unsigned self = headrace::on_host::Block::current().lane_in_warp();
  unsigned base = self / static_cast<unsigned>(width) * static_cast<unsigned>(width);
  return headrace::on_host::exchange(mask, value, base + static_cast<unsigned>(lane % width), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  std::source_location at = std::source_location::current()) {
  unsigned self = headrace::on_host::Block::current().lane_in_warp();
  unsigned from = self ^ static_cast<unsigned>(lanes);
  bool inside = from / static_cast<unsigned>(width) <= self / static_cast<unsigned>(width);
  return headrace::on_host::exchange(mask, value, inside ? from : self, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                   std::source_location at = std::source_location::current()) {
  unsigned self = headrace::on_host::Block::current().lane_in_warp();
  bool inside = self % static_cast<unsigned>(width) + lanes < static_cast<unsigned>(width);
  return headrace::on_host::exchange(mask, value, inside ? self + lanes : self, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location at = std::source_location::current()) {
  auto& block = headrace::on_host::Block::current();
  block.publish(mask, predicate != 0, at);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0 && block.published(lane, mask, at) != 0) votes |= 1u << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate,
                      std::source_location at = std::source_location::current()) {
  return __ballot_sync(mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      std::source_location at = std::source_location::current()) {
  return __ballot_sync(mask, predicate, at) == mask;
}

// Lanes take turns, so that plain arithmetic is atomic.
template <class T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, static_cast<T>(*at + value));
}
template <class T>
T atomicMax(T* at, T value) {
  return std::exchange(*at, std::max(*at, value));
}
template <class T>
T atomicExch(T* at, T value) {
  return std::exchange(*at, value);
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
  T old = *at;
  if (old == expected) *at = value;
  return old;
}

inline float __half2float(__half x) {
  return x;
}
inline __half __float2half(float x) {
  return __half(x);
}
inline float __bfloat162float(__nv_bfloat16 x) {
  return x;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  return __nv_bfloat16(x);
}
