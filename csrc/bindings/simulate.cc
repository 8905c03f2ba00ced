#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/gil.h"
#include "simulate/pool.h"

namespace py = pybind11;

namespace headrace {
namespace {

py::array_t<int64_t> counts_of(const Latencies& latencies) {
  return py::array_t<int64_t>(static_cast<py::ssize_t>(latencies.counts().size()),
                              latencies.counts().data());
}

py::array_t<double> latency_bounds() {
  py::array_t<double> bounds(Latencies::kBuckets + 1);
  for (int i = 0; i <= Latencies::kBuckets; ++i) bounds.mutable_at(i) = Latencies::lower_bound(i);
  return bounds;
}

}  // namespace

void bind_simulate(py::module_& module) {
  py::class_<PoolWindow>(module, "PoolWindow",
                         "What happened in a SimulatedPool since the last take().")
      .def_readonly("arrived", &PoolWindow::arrived)
      .def_readonly("refused", &PoolWindow::refused)
      .def_readonly("expired", &PoolWindow::expired)
      .def_readonly("ok", &PoolWindow::ok)
      .def_readonly("late", &PoolWindow::late)
      .def_readonly("held", &PoolWindow::held)
      .def_readonly("batches", &PoolWindow::batches)
      .def_readonly("busy_s", &PoolWindow::busy_s)
      .def_readonly("replica_s", &PoolWindow::replica_s)
      .def_property_readonly(
          "latencies", [](const PoolWindow& window) { return counts_of(window.latencies); },
          "Answers per bucket of latency, int64; latency_bounds() has the buckets.");

  py::class_<PoolState>(module, "PoolState", "How things stand in a SimulatedPool.")
      .def_readonly("running", &PoolState::running)
      .def_readonly("starting", &PoolState::starting)
      .def_readonly("ongoing", &PoolState::ongoing)
      .def_readonly("delay_mean_s", &PoolState::delay_mean_s)
      .def_readonly("delay_high_s", &PoolState::delay_high_s);

  module.def("latency_bounds", &latency_bounds,
             "Bounds of the buckets in seconds: bucket i holds [bounds[i], bounds[i + 1]).");

  py::class_<Pool>(module, "SimulatedPool", "Replicas behind a load balancer, in simulated time.")
      .def(py::init([](double fixed_s, double per_request_s, std::vector<double> ratios,
                       int max_batch, int max_queue, double deadline_s, double objective_s,
                       double cold_start_s, int held_max, int choices, uint64_t seed,
                       std::vector<double> factors, std::vector<double> sizes,
                       std::vector<std::vector<double>> ratios_of, double wake_s) {
             return std::make_unique<Pool>(
                 PoolOptions{fixed_s, per_request_s, std::move(ratios), std::move(ratios_of),
                             std::move(factors), std::move(sizes), wake_s, max_batch, max_queue,
                             deadline_s, objective_s, cold_start_s, held_max, choices, seed});
           }),
           py::kw_only(), py::arg("fixed_s"), py::arg("per_request_s"), py::arg("ratios"),
           py::arg("max_batch"), py::arg("max_queue"), py::arg("deadline_s"),
           py::arg("objective_s"), py::arg("cold_start_s"), py::arg("held_max"), py::arg("choices"),
           py::arg("seed"), py::arg("factors") = std::vector<double>(),
           py::arg("sizes") = std::vector<double>(),
           py::arg("ratios_of") = std::vector<std::vector<double>>(), py::arg("wake_s") = 0.0)
      .def(
          "offer",
          [](Pool& pool,
             const py::array_t<double, py::array::c_style | py::array::forcecast>& at_s) {
            std::span<const double> arrivals(at_s.data(), static_cast<size_t>(at_s.size()));
            GilReleased released;
            pool.offer(arrivals);
          },
          py::arg("arrivals_s"))
      .def("offer_poisson", &Pool::offer_poisson, py::arg("rate_rps"), py::arg("until_s"),
           py::call_guard<GilReleased>())
      .def("advance", &Pool::advance, py::arg("until_s"), py::call_guard<GilReleased>())
      .def("scale", &Pool::scale, py::arg("target"))
      .def("start_now", &Pool::start_now, py::arg("count"))
      .def("state", &Pool::state)
      .def_property_readonly("window", &Pool::window, "What take() would return now.")
      .def("take", &Pool::take)
      .def_property_readonly("now", &Pool::now);
}

}  // namespace headrace
