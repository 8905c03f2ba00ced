// Whose device a thread works on, and when.
#include "op_case.h"

namespace headrace::cuda::test {
namespace {

HR_TEST(cuda_threads_go_back_to_the_device_they_came_from) {
  on_host::current_device = 3;  // as torch's, say
  OpCase gather{node_of("Gather", 13),
                {constant(random({4, 6}, 1)), per_request({ints({2}, {0, 3}), ints({1}, {9})})}};
  DevicePlan plan(program_of(gather, true), open_device(0));
  HR_CHECK_EQ(on_host::current_device, 3);
  std::vector<std::vector<ConstTensorView>> views = views_of(gather);
  run_plan(plan, {views[0]});
  HR_CHECK_EQ(on_host::current_device, 3);
  bool failed = false;
  try {
    run_plan(plan, {views[1]});  // an index beyond its table
  } catch (const Error&) {
    failed = true;
  }
  HR_CHECK(failed);
  HR_CHECK_EQ(on_host::current_device, 3);
  on_host::current_device = 0;
}

}  // namespace
}  // namespace headrace::cuda::test
