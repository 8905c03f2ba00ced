// That cuda_on_host.h finds what it says it finds: each test plants an error.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <numeric>

#include "check.h"
#include "cuda/kernel.h"

namespace headrace::cuda {
namespace {

constexpr unsigned kThreads = 64;

struct SharedInts {
  int values[kThreads];
};

// Reverses 64 ints by way of shared memory.
__global__ void reverse(const int* from, int* to, bool with_barrier) {
  auto& shared = shared_memory<SharedInts>();
  shared.values[threadIdx.x] = from[threadIdx.x];
  if (with_barrier) __syncthreads();
  to[threadIdx.x] = shared.values[kThreads - 1 - threadIdx.x];
}

template <class... Params, class... Args>
void run(dim3 grid, dim3 threads, size_t shared, void (*kernel)(Params...), Args... args) {
  on_host::run_grid(grid, threads, shared, [&] { kernel(static_cast<Params>(args)...); });
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

HR_TEST(cuda_barrier_lets_lanes_exchange) {
  std::vector<int> from(kThreads), to(kThreads, -1);
  std::iota(from.begin(), from.end(), 0);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    on_host::set_seed(seed);
    run(1, kThreads, sizeof(SharedInts), reverse, from.data(), to.data(), true);
    for (int i = 0; i < static_cast<int>(kThreads); ++i) HR_CHECK_EQ(to[i], 63 - i);
  }
}

HR_TEST(cuda_missing_barrier_is_found) {
  std::vector<int> from(kThreads, 7), to(kThreads);
  on_host::set_seed(1);
  run(1, kThreads, sizeof(SharedInts), reverse, from.data(), to.data(), false);
  // What nobody has written yet is -1.
  HR_CHECK(std::ranges::count(to, 7) < kThreads);
  HR_CHECK(std::ranges::count(to, -1) > 0);
}

// Every lane adds itself to one sum, without atomics and by turns: the last writer wins.
__global__ void race(int* last) {
  auto& shared = shared_memory<SharedInts>();
  shared.values[0] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) *last = shared.values[0];
}

HR_TEST(cuda_race_on_shared_memory_changes_with_the_seed) {
  std::vector<int> winners;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    on_host::set_seed(seed);
    int last = -1;
    run(1, kThreads, sizeof(SharedInts), race, &last);
    winners.push_back(last);
  }
  HR_CHECK(std::ranges::count(winners, winners[0]) < 8);
}

__global__ void diverge(bool by_return) {
  if (threadIdx.x < 8) {
    if (by_return) return;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

HR_TEST(cuda_divergent_barrier_is_an_error) {
  std::string text = message_of([] { run(1, kThreads, 0, diverge, false); });
  HR_CHECK(text.find("divergent barrier") != std::string::npos);
  HR_CHECK(text.find("on_host_test.cc") != std::string::npos);
  text = message_of([] { run(1, kThreads, 0, diverge, true); });
  HR_CHECK(text.find("8 have returned") != std::string::npos);
}

__global__ void shuffle_in_half_a_warp(float* out) {
  float x = 1.0f;
  if (threadIdx.x < 16) x = warp_sum(x);
  out[threadIdx.x] = x;
}

HR_TEST(cuda_shuffle_that_not_all_lanes_reach_is_an_error) {
  std::vector<float> out(32);
  std::string text = message_of([&] { run(1, 32, 0, shuffle_in_half_a_warp, out.data()); });
  HR_CHECK(text.find("divergent warp barrier: 16 lanes wait here") != std::string::npos);
}

__global__ void warp_functions(float* sums, float* maxima, unsigned* votes, int* down) {
  auto lane = static_cast<float>(threadIdx.x);
  sums[threadIdx.x] = warp_sum(lane);
  maxima[threadIdx.x] = warp_max(lane);
  votes[threadIdx.x] = __ballot_sync(kAllLanes, threadIdx.x % 2);
  down[threadIdx.x] = __shfl_down_sync(kAllLanes, static_cast<int>(threadIdx.x), 1);
}

HR_TEST(cuda_warp_functions_exchange) {
  std::vector<float> sums(64), maxima(64);
  std::vector<unsigned> votes(64);
  std::vector<int> down(64);
  run(1, 64, 0, warp_functions, sums.data(), maxima.data(), votes.data(), down.data());
  HR_CHECK_EQ(sums[0], 496.0f);
  HR_CHECK_EQ(sums[63], 496.0f + 32 * 32);
  HR_CHECK_EQ(maxima[5], 31.0f);
  HR_CHECK_EQ(maxima[37], 63.0f);
  HR_CHECK_EQ(votes[3], 0xaaaaaaaau);
  HR_CHECK_EQ(down[4], 5);
  HR_CHECK_EQ(down[31], 31);
}

__global__ void count(int* counter, int* seen) {
  seen[atomicAdd(counter, 1)] += 1;
}

HR_TEST(cuda_atomics_count_every_thread_of_every_block) {
  int counter = 0;
  std::vector<int> seen(3 * 40);
  run(3, 40, 0, count, &counter, seen.data());
  HR_CHECK_EQ(counter, 120);
  HR_CHECK(std::ranges::count(seen, 1) == 120);
}

struct Tiles {
  alignas(32) __nv_bfloat16 a[256];
  alignas(32) __nv_bfloat16 b[256];
  alignas(32) float c[256];
};

__global__ void multiply(const float* a, const float* b, float* c) {
  using namespace nvcuda;
  auto& tiles = shared_memory<Tiles>();
  for (unsigned i = threadIdx.x; i < 256; i += 32) {
    tiles.a[i] = __float2bfloat16(a[i]);
    tiles.b[i] = __float2bfloat16(b[i]);
  }
  __syncthreads();
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;
  wmma::fill_fragment(sums, 0.0f);
  wmma::load_matrix_sync(fa, tiles.a, 16);
  wmma::load_matrix_sync(fb, tiles.b, 16);
  wmma::mma_sync(sums, fa, fb, sums);
  wmma::store_matrix_sync(tiles.c, sums, 16, wmma::mem_row_major);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 256; i += 32) c[i] = tiles.c[i];
}

HR_TEST(cuda_fragments_multiply) {
  std::vector<float> a(256), b(256), c(256);
  for (int i = 0; i < 256; ++i) {
    a[i] = static_cast<float>(i % 7 - 3);
    b[i] = static_cast<float>(i % 5 - 2);
  }
  run(1, 32, sizeof(Tiles), multiply, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 16; ++col) {
      float expected = 0;
      for (int k = 0; k < 16; ++k) expected += a[row * 16 + k] * b[k * 16 + col];
      HR_CHECK_EQ(c[row * 16 + col], expected);
    }
  }
}

HR_TEST(cuda_launches_that_no_device_takes_are_errors) {
  int last = 0;
  HR_CHECK_THROWS(run(1, 2048, 0, race, &last), Error);
  HR_CHECK_THROWS(run(0, 32, 0, race, &last), Error);
  HR_CHECK_THROWS(run(1, 32, 1 << 20, race, &last), Error);
  HR_CHECK_THROWS(run(dim3(1, 70000), 32, 0, race, &last), Error);
}

#if defined(__SANITIZE_ADDRESS__)

__global__ void fill(int* to) {
  to[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}
__global__ void overrun_shared(int* to) {
  reinterpret_cast<int*>(on_host::dynamic_shared)[threadIdx.x + 1] = 1;
  __syncthreads();
  *to = reinterpret_cast<int*>(on_host::dynamic_shared)[0];
}

// Whether the sanitizer ends a process that does this.
bool dies(const std::function<void()>& body) {
  pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

HR_TEST(cuda_write_beyond_an_array_is_found) {
  std::vector<int> array(100);
  array.shrink_to_fit();
  HR_CHECK(!dies([&] { run(1, 100, 0, fill, array.data()); }));
  HR_CHECK(dies([&] { run(2, 64, 0, fill, array.data()); }));
}

HR_TEST(cuda_write_beyond_shared_memory_is_found) {
  int result = 0;
  HR_CHECK(!dies([&] { run(1, 31, 32 * sizeof(int), overrun_shared, &result); }));
  HR_CHECK(dies([&] { run(1, 32, 32 * sizeof(int), overrun_shared, &result); }));
}

#endif

}  // namespace
}  // namespace headrace::cuda
