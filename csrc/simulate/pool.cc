#include "simulate/pool.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace headrace {
namespace {

constexpr size_t kRingMin = 32;
constexpr double kDelayMemory_s = 2.0;  // as the Batcher's FadingMean
constexpr double kDelayNewest = 0.05;

void check(bool ok, const char* name, double value, const char* expected) {
  if (!ok) {
    fail(ErrorKind::kBackendUnavailable, "simulate: got ", name, "=", value, ", expected ",
         expected);
  }
}

uint64_t rotate(uint64_t value, int by) {
  return std::rotl(value, by);
}

}  // namespace

Pool::Pool(PoolOptions options) : options_(std::move(options)) {
  const PoolOptions& o = options_;
  check(o.fixed_s >= 0, "fixed_s", o.fixed_s, "0 or more");
  check(o.per_request_s >= 0, "per_request_s", o.per_request_s, "0 or more");
  check(cost(1) > 0, "fixed_s + per_request_s", cost(1), "more than 0");
  check(o.max_batch >= 1, "max_batch", o.max_batch, "1 or more");
  check(o.max_queue >= 1, "max_queue", o.max_queue, "1 or more");
  check(o.deadline_s >= 0, "deadline_s", o.deadline_s, "0 or more");
  check(o.objective_s >= 0, "objective_s", o.objective_s, "0 or more");
  check(o.cold_start_s >= 0, "cold_start_s", o.cold_start_s, "0 or more");
  check(o.held_max >= 0, "held_max", o.held_max, "0 or more");
  check(o.choices == 1 || o.choices == 2, "choices", o.choices, "1 or 2");
  auto each = [](const std::vector<double>& values, const char* name) {
    for (double value : values) check(value > 0 && value < 1e6, name, value, "more than 0");
  };
  each(o.ratios, "a ratio");
  for (const std::vector<double>& ratios : o.ratios_of) each(ratios, "a ratio");
  check(o.wake_s >= 0, "wake_s", o.wake_s, "0 or more");
  each(o.factors, "a factor");
  each(o.sizes, "a size");
  uint64_t seed = o.seed;  // splitmix64, as the authors of xoshiro advise
  for (uint64_t& word : random_) {
    seed += 0x9e3779b97f4a7c15;
    word = seed;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    word ^= word >> 31;
  }
}

// xoshiro256++ (Blackman and Vigna, 2021): std::mt19937 takes longer than all the rest of a
// request, and the distributions of <random> give other numbers with other standard libraries.
uint64_t Pool::random() {
  uint64_t result = rotate(random_[0] + random_[3], 23) + random_[0];
  uint64_t kept = random_[1] << 17;
  random_[2] ^= random_[0];
  random_[3] ^= random_[1];
  random_[1] ^= random_[2];
  random_[0] ^= random_[3];
  random_[2] ^= kept;
  random_[3] = rotate(random_[3], 45);
  return result;
}

// In (0, 1].
double Pool::uniform() {
  return (static_cast<double>(random() >> 11) + 1) * 0x1p-53;
}

uint32_t Pool::below(uint32_t bound) {
  return static_cast<uint32_t>((random() >> 32) * bound >> 32);
}

void Pool::offer(std::span<const double> arrivals_s) {
  for (double at_s : arrivals_s) {
    check(at_s >= now_, "an arrival at", at_s, "one not before the last");
    arrive(at_s);
  }
}

int64_t Pool::offer_poisson(double rate_rps, double until_s) {
  check(rate_rps >= 0 && rate_rps < 1e9, "rate_rps", rate_rps, "a finite number, 0 or more");
  if (rate_rps == 0) return 0;
  int64_t count = 0;
  // The stream has no memory, so what was left of the last gap need not be kept.
  double gap_s = 1 / rate_rps;
  for (double at_s = now_ - gap_s * std::log(uniform()); at_s < until_s;
       at_s -= gap_s * std::log(uniform())) {
    arrive(at_s);
    ++count;
  }
  return count;
}

void Pool::arrive(double at_s) {
  if (at_s >= next_start_s_) start_ready(at_s);
  now_ = at_s;
  ++window_.arrived;
  if (replicas_.empty()) {
    if (held_.size() >= static_cast<size_t>(options_.held_max)) {
      ++window_.refused;
      return;
    }
    ++window_.held;
    held_.push_back(at_s);
    return;
  }
  auto count = static_cast<uint32_t>(replicas_.size());
  uint32_t first = below(count);
  Replica* chosen = &replicas_[first];
  update(*chosen, at_s);
  if (options_.choices == 2 && count > 1) {
    uint32_t second = below(count - 1);
    Replica* other = &replicas_[second + (second >= first)];
    update(*other, at_s);
    uint32_t mine = chosen->size + static_cast<uint32_t>(chosen->running);
    if (other->size + static_cast<uint32_t>(other->running) < mine) chosen = other;
  }
  give(*chosen, at_s, at_s);
}

// Hands a replica, which is up to date, a request that came to the balancer at `arrived_s`.
void Pool::give(Replica& replica, double arrived_s, double at_s) {
  const std::vector<double>& sizes = options_.sizes;
  double size = sizes.empty() ? 1 : sizes[below(static_cast<uint32_t>(sizes.size()))];
  if (!admits(replica, size, at_s)) {
    ++window_.refused;
    return;
  }
  if (replica.size == replica.ring.size()) {
    std::rotate(replica.ring.begin(), replica.ring.begin() + replica.head, replica.ring.end());
    replica.head = 0;
    replica.ring.resize(std::max(kRingMin, 2 * replica.ring.size()));
  }
  double due_s = options_.deadline_s > 0 ? at_s + options_.deadline_s
                                         : std::numeric_limits<double>::infinity();
  auto mask = static_cast<uint32_t>(replica.ring.size() - 1);
  replica.ring[(replica.head + replica.size) & mask] = {arrived_s, due_s, size};
  ++replica.size;
  replica.queued += size;
  if (replica.running == 0) pack(replica, at_s);
}

// As Batcher::admit, for Jobs that all have the same priority and time to their deadline.
bool Pool::admits(const Replica& replica, double size, double at_s) const {
  if (replica.size >= static_cast<uint32_t>(options_.max_queue)) return false;
  if (options_.deadline_s == 0) return true;
  double running_s = 0;
  if (replica.running > 0) {
    double elapsed_s = at_s - replica.batch_start_s;
    running_s = std::max(replica.batch_estimate_s - elapsed_s, 0.1 * elapsed_s);
  }
  int jobs = static_cast<int>(replica.size) + 1;
  int batches = (jobs + options_.max_batch - 1) / options_.max_batch;
  double finish_s =
      running_s + batches * options_.fixed_s + (replica.queued + size) * options_.per_request_s;
  double own_s = cost(size);
  return own_s + (finish_s - own_s) * backlog_factor(replica.overrun) <= options_.deadline_s;
}

// Runs what a replica does up to a time.
void Pool::update(Replica& replica, double to_s) {
  while (replica.running > 0 && replica.batch_end_s <= to_s) {
    replica.running = 0;
    if (replica.size > 0) pack(replica, replica.batch_end_s);
  }
}

// As Batcher::pack: takes the next Batch, counts its answers, and leaves out what is too late.
void Pool::pack(Replica& replica, double at_s) {
  auto mask = static_cast<uint32_t>(replica.ring.size() - 1);
  uint32_t head = replica.head;
  uint32_t end = head + replica.size;
  auto taken = [&](const Waiting& waiting) {
    replica.queued -= waiting.size;
    ++head;
  };
  while (head != end) {
    const Waiting& next = replica.ring[head & mask];
    if (next.due_s - at_s >= cost(next.size)) break;
    ++window_.expired;
    taken(next);
  }
  int jobs = 0;
  double work = 0;
  uint32_t first = head;
  // Requests are in the order of their deadlines, so the first of a Batch has the earliest.
  while (head != end && jobs < options_.max_batch) {
    const Waiting& next = replica.ring[head & mask];
    if (jobs > 0 && options_.deadline_s > 0 &&
        cost(work + next.size) > batch_most_s(replica.ring[first & mask].due_s - at_s,
                                              options_.deadline_s, options_.fixed_s,
                                              replica.overrun)) {
      break;
    }
    work += next.size;
    ++jobs;
    taken(next);
  }
  replica.head = head & mask;
  replica.size = end - head;
  if (head == end) replica.queued = 0;  // no rounding may pile up
  if (jobs == 0) return;
  double estimate_s = cost(work);
  double takes_s = estimate_s * off_the_line(jobs);
  const std::vector<double>& ratios = ratios_of(jobs);
  if (!ratios.empty()) takes_s *= ratios[below(static_cast<uint32_t>(ratios.size()))];
  if (at_s > replica.batch_end_s) takes_s += options_.wake_s;
  replica.overrun.observe(takes_s / estimate_s);
  replica.running = jobs;
  replica.batch_start_s = at_s;
  replica.batch_estimate_s = estimate_s;
  replica.batch_end_s = at_s + takes_s;
  double waited_s = 0;
  for (uint32_t i = first; i != head; ++i) {
    double arrived_s = replica.ring[i & mask].arrived_s;
    waited_s += at_s - arrived_s;
    double latency_s = replica.batch_end_s - arrived_s;
    window_.latencies.add(latency_s);
    window_.late += options_.objective_s > 0 && latency_s > options_.objective_s;
  }
  window_.ok += jobs;
  ++window_.batches;
  window_.busy_s += takes_s;
  note_delay(replica, at_s, waited_s / jobs);
}

double Pool::off_the_line(int jobs) const {
  const std::vector<double>& factors = options_.factors;
  return factors.empty() ? 1 : factors[std::min(static_cast<size_t>(jobs), factors.size() - 1)];
}

const std::vector<double>& Pool::ratios_of(int jobs) const {
  const auto& of = options_.ratios_of;
  return of.empty() ? options_.ratios : of[std::min(static_cast<size_t>(jobs), of.size() - 1)];
}

void Pool::note_delay(Replica& replica, double at_s, double mean_s) {
  double old = std::exp((replica.delay_at_s - at_s) / kDelayMemory_s) * (1 - kDelayNewest);
  replica.delay_s = replica.delay_s * old + mean_s * (1 - old);
  replica.delay_at_s = at_s;
}

void Pool::advance(double until_s) {
  check(until_s >= now_, "a time of", until_s, "one not before the last");
  if (until_s >= next_start_s_) start_ready(until_s);
  for (Replica& replica : replicas_) update(replica, until_s);
  pay(until_s);
  now_ = until_s;
}

void Pool::start_now(int count) {
  pay(now_);
  replicas_.resize(replicas_.size() + static_cast<size_t>(count));
}

void Pool::scale(int target) {
  check(target >= 0, "target", target, "0 or more");
  auto wanted = static_cast<size_t>(target);
  pay(now_);
  size_t have = replicas_.size() + starting_.size();
  if (wanted > have) {
    starting_.insert(starting_.end(), wanted - have, now_);
    next_start_s_ = starting_.front() + options_.cold_start_s;
    return;
  }
  size_t surplus = have - wanted;
  size_t unborn = std::min(surplus, starting_.size());
  starting_.resize(starting_.size() - unborn);
  if (starting_.empty()) next_start_s_ = std::numeric_limits<double>::infinity();
  for (size_t i = unborn; i < surplus; ++i) {
    drain(replicas_.back());
    replicas_.pop_back();
  }
}

// A replica that gets no more requests does what it has, whatever else happens: so it is done now.
void Pool::drain(Replica& replica) {
  update(replica, std::numeric_limits<double>::infinity());
  window_.replica_s += std::max(0.0, replica.batch_end_s - now_);
}

// Those that start are paid for like those that run.
void Pool::pay(double to_s) {
  double replicas = static_cast<double>(replicas_.size() + starting_.size());
  window_.replica_s += replicas * std::max(0.0, to_s - paid_s_);
  paid_s_ = std::max(paid_s_, to_s);
}

// Turns those whose time has come into running replicas, and gives the first what was held.
void Pool::start_ready(double to_s) {
  size_t ready = 0;
  while (ready < starting_.size() && starting_[ready] + options_.cold_start_s <= to_s) {
    double at_s = starting_[ready] + options_.cold_start_s;
    replicas_.emplace_back();
    ++ready;
    bool last = ready == starting_.size() || starting_[ready] + options_.cold_start_s > at_s;
    if (!last || held_.empty()) continue;
    now_ = at_s;
    for (size_t i = 0; i < held_.size(); ++i) {
      Replica& replica = replicas_[i % replicas_.size()];
      update(replica, at_s);
      give(replica, held_[i], at_s);
    }
    held_.clear();
  }
  starting_.erase(starting_.begin(), starting_.begin() + static_cast<ptrdiff_t>(ready));
  next_start_s_ = starting_.empty() ? std::numeric_limits<double>::infinity()
                                    : starting_.front() + options_.cold_start_s;
}

PoolState Pool::state() const {
  PoolState state;
  state.running = static_cast<int>(replicas_.size());
  state.starting = static_cast<int>(starting_.size());
  state.ongoing = static_cast<double>(held_.size());
  std::vector<double> delays;
  delays.reserve(replicas_.size());
  for (const Replica& replica : replicas_) {
    state.ongoing += static_cast<double>(replica.size) + replica.running;
    double delay_s = replica.delay_s * std::exp((replica.delay_at_s - now_) / kDelayMemory_s);
    if (replica.size > 0) {
      delay_s = std::max(delay_s, now_ - replica.ring[replica.head].arrived_s);
    }
    state.delay_mean_s += delay_s;
    delays.push_back(delay_s);
  }
  if (delays.empty()) return state;
  state.delay_mean_s /= static_cast<double>(delays.size());
  auto high = delays.begin() +
              static_cast<ptrdiff_t>(std::ceil(0.9 * static_cast<double>(delays.size() - 1)));
  std::nth_element(delays.begin(), high, delays.end());
  state.delay_high_s = *high;
  return state;
}

PoolWindow Pool::take() {
  PoolWindow window = window_;
  window_ = PoolWindow();
  return window;
}

}  // namespace headrace
