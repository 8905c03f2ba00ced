// Replicas behind a load balancer, in simulated time: every request and every Batch is an event.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "batcher/admission.h"
#include "simulate/latencies.h"

namespace headrace {

// Times in seconds.
struct PoolOptions {
  double fixed_s = 0;           // a Batch of n takes fixed + n * per_request,
  double per_request_s = 0.01;  // times one of the ratios, drawn at random
  std::vector<double> ratios;   // measured / predicted; empty: always 1
  // The same of Batches of n alone, at [n]; larger ones as the last, and empty: all as `ratios`.
  std::vector<std::vector<double>> ratios_of;
  // How far Batches of n are off that line, at [n]; larger ones as the last, and empty: never.
  std::vector<double> factors;
  std::vector<double> sizes;  // a request's is one of these, drawn at random; empty: all are 1
  double wake_s =
      0;  // what a Batch takes longer that an idle Engine runs: it woke, its caches cold
  int max_batch = 64;
  int max_queue = 1024;   // per replica, as the Batcher's
  double deadline_s = 0;  // of every request after it reached its replica; 0 for none
  double objective_s =
      0;  // a request answered later than this after it arrived is late; 0: none is
  double cold_start_s = 5;
  int held_max = 1024;  // requests the balancer keeps while no replica runs
  int choices = 2;      // replicas the balancer compares; 1 takes any
  uint64_t seed = 1;
};

// Since the last take().
struct PoolWindow {
  int64_t arrived = 0;  // offered to the balancer
  int64_t refused = 0;  // by a full queue or by admission
  int64_t expired = 0;  // accepted, but not computed in time
  int64_t ok = 0;
  int64_t late = 0;  // of those ok
  int64_t held = 0;  // came while no replica ran, and waited for one to start
  int64_t batches = 0;
  double busy_s = 0;     // of all replicas' Engines together
  double replica_s = 0;  // paid for: from being asked for until drained
  Latencies latencies;   // of those ok: from arrival at the balancer to the answer
};

// How things stand.
struct PoolState {
  int running = 0;  // take requests
  int starting = 0;
  double ongoing = 0;       // requests held, queued or running
  double delay_mean_s = 0;  // recent waits, as the replicas' Batchers would report them:
  double delay_high_s = 0;  // their mean over replicas, and what one in ten exceeds
};

// Each replica does as the Batcher does: an idle Engine takes what waits at once, up to max_batch
// and no more than all of it has time for; a request that cannot meet its deadline is refused. The
// balancer compares the true numbers of ongoing requests of `choices` random replicas.
//
// There is no queue of events: a replica's future depends on nothing but what it is given, so it is
// brought up to date when the balancer looks at it. That makes a request cost about 100 ns however
// many replicas there are. What a draining replica still does is counted when it is told to go.
// Not thread-safe. The same calls with the same seed give the same numbers.
class Pool {
 public:
  // Throws Error(kBackendUnavailable) if an option is out of range.
  explicit Pool(PoolOptions options);

  // Requests at these times, which never go back behind the last call's.
  void offer(std::span<const double> arrivals_s);
  // A Poisson stream of that rate up to a time. Returns the number of requests.
  int64_t offer_poisson(double rate_rps, double until_s);
  // Brings everything up to date.
  void advance(double until_s);
  // Starts replicas, or takes some away: those that still start first, then the newest.
  void scale(int target);
  // `count` replicas that run at once.
  void start_now(int count);

  double now() const { return now_; }
  PoolState state() const;
  const PoolWindow& window() const { return window_; }
  PoolWindow take();

 private:
  struct Waiting {
    double arrived_s;
    double due_s;
    double size;
  };
  struct Replica {
    double batch_end_s = 0;  // of the running Batch
    double batch_start_s = 0;
    double batch_estimate_s = 0;
    int running = 0;    // requests in it; 0 when idle
    double queued = 0;  // sizes of those that wait, together
    uint32_t head = 0;  // of the ring: a power of two of places
    uint32_t size = 0;
    std::vector<Waiting> ring;
    Overrun overrun;
    double delay_s = 0;  // fading mean of waits, and when it was last added to
    double delay_at_s = 0;
  };

  uint64_t random();
  double uniform();
  uint32_t below(uint32_t bound);
  void arrive(double at_s);
  void give(Replica& replica, double arrived_s, double at_s);
  bool admits(const Replica& replica, double size, double at_s) const;
  void update(Replica& replica, double to_s);
  void pack(Replica& replica, double at_s);
  void note_delay(Replica& replica, double at_s, double mean_s);
  void pay(double to_s);
  void start_ready(double to_s);
  void drain(Replica& replica);
  double cost(double size) const { return options_.fixed_s + options_.per_request_s * size; }
  double off_the_line(int jobs) const;
  const std::vector<double>& ratios_of(int jobs) const;

  const PoolOptions options_;
  double now_ = 0;
  double paid_s_ = 0;  // up to when replica_s is counted
  double next_start_s_ = std::numeric_limits<double>::infinity();
  std::vector<Replica> replicas_;  // running
  std::vector<double> starting_;   // when each was asked for, in order
  std::vector<double> held_;       // arrivals
  PoolWindow window_;
  uint64_t random_[4];
};

}  // namespace headrace
