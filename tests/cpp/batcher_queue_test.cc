#include "batcher/queue.h"

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "check.h"

namespace headrace {
namespace {

using std::chrono::milliseconds;

HR_TEST(queue_agrees_with_a_sorted_list) {
  std::mt19937 random(7);
  JobQueue queue;
  std::deque<Job> jobs;
  std::vector<Job*> model;
  auto before = [](const Job* a, const Job* b) {
    if (a->priority != b->priority) return a->priority > b->priority;
    if (a->due != b->due) return a->due < b->due;
    return a->id < b->id;
  };
  Clock::time_point zero{};
  for (int round = 0; round < 5000; ++round) {
    unsigned action = random() % 10;
    if (action < 5 || model.empty()) {
      Job& job = jobs.emplace_back();
      job.id = jobs.size();
      job.priority = static_cast<int>(random() % 3);
      job.work = 1 + random() % 5;
      job.deadline = zero + milliseconds(round + random() % 200);
      job.due = job.deadline;
      job.caller = random() % 4 + JobQueue::kCallers * (random() % 2);
      JobQueue::Ahead ahead = queue.ahead_of(job);
      size_t place = std::ranges::lower_bound(model, &job, before) - model.begin();
      HR_CHECK_EQ(ahead.jobs, place);
      int64_t work = 0;
      JobQueue::Backlog own;
      for (size_t i = 0; i < place; ++i) {
        work += model[i]->work;
        if (model[i]->caller % JobQueue::kCallers != job.caller % JobQueue::kCallers) continue;
        ++own.jobs;
        own.work += model[i]->work;
      }
      HR_CHECK_EQ(ahead.work, work);
      HR_CHECK_EQ(ahead.own.jobs, own.jobs);
      HR_CHECK_EQ(ahead.own.work, own.work);
      model.insert(model.begin() + static_cast<long>(place), &job);
      queue.push(&job);
    } else if (action < 7) {
      HR_CHECK_EQ(queue.front(), model.front());
      HR_CHECK_EQ(queue.pop(), model.front());
      model.erase(model.begin());
    } else if (action < 9) {
      size_t victim = random() % model.size();
      queue.remove(model[victim]);
      model.erase(model.begin() + static_cast<long>(victim));
    } else {
      auto now = zero + milliseconds(round + random() % 20);
      std::vector<Job*> expired;
      queue.take_expired(now, [&](Job* job) { expired.push_back(job); });
      std::vector<Job*> expected;
      std::erase_if(model, [&](Job* job) {
        if (job->deadline > now) return false;
        expected.push_back(job);
        return true;
      });
      HR_CHECK(expired == expected);
    }
    int64_t work = 0;
    for (const Job* job : model) work += job->work;
    HR_CHECK_EQ(queue.work(), work);
    HR_CHECK_EQ(queue.size(), model.size());
    size_t callers = 0;
    for (uint64_t caller = 0; caller < 4; ++caller) callers += queue.backlog_of(caller).jobs;
    HR_CHECK_EQ(callers, model.size());
  }
}

}  // namespace
}  // namespace headrace
