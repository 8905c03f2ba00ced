#include "bindings/ticket.h"

#include <algorithm>
#include <cstring>

#include "bindings/gil.h"
#include "core/pause.h"

namespace py = pybind11;

namespace headrace {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t text_bytes(const ConstTensorView& tensor) {
  int64_t bytes = 0;
  if (tensor.dtype == DType::kString) {
    for (const StringRef& text : tensor.span<StringRef>()) bytes += text.size;
  }
  return bytes;
}

// Appends the characters behind the refs, and turns the refs to them.
void copy_texts(std::span<StringRef> refs, std::byte* room) {
  for (StringRef& ref : refs) {
    if (ref.size > 0) std::memcpy(room, ref.data, static_cast<size_t>(ref.size));
    ref.data = reinterpret_cast<const char*>(room);
    room += ref.size;
  }
}

struct Unswept {
  std::mutex mutex;
  std::vector<std::unique_ptr<PythonSide>> sides;
  std::atomic<size_t> count{0};
};

// Leaked on purpose: threads may still drop into it while the process ends.
Unswept& unswept_sides() {
  static auto* unswept = new Unswept;
  return *unswept;
}

}  // namespace

void OutputBlock::copy(const Run& run, size_t request, size_t outputs) {
  views_.resize(outputs);
  int64_t bytes = 0;
  for (size_t i = 0; i < outputs; ++i) {
    views_[i] = run.output(request, i);
    bytes += aligned(views_[i].bytes() + text_bytes(views_[i]));
  }
  memory_ = std::make_shared_for_overwrite<std::byte[]>(static_cast<size_t>(bytes + kAlignment));
  auto address = reinterpret_cast<uintptr_t>(memory_.get());
  std::byte* place = memory_.get() + (aligned(static_cast<int64_t>(address)) - address);
  for (ConstTensorView& view : views_) {
    int64_t texts = text_bytes(view);
    if (view.bytes() > 0) std::memcpy(place, view.data, static_cast<size_t>(view.bytes()));
    if (view.dtype == DType::kString) {
      copy_texts({reinterpret_cast<StringRef*>(place), static_cast<size_t>(view.elements())},
                 place + view.bytes());
    }
    view.data = place;
    place += aligned(view.bytes() + texts);
  }
}

void PythonSide::drop(std::unique_ptr<PythonSide> side) {
  if (PyGILState_Check()) return;
  Unswept& unswept = unswept_sides();
  std::lock_guard lock(unswept.mutex);
  unswept.sides.push_back(std::move(side));
  unswept.count = unswept.sides.size();
}

void PythonSide::sweep() {
  Unswept& unswept = unswept_sides();
  if (unswept.count == 0) return;
  std::vector<std::unique_ptr<PythonSide>> sides;
  std::lock_guard lock(unswept.mutex);
  sides.swap(unswept.sides);
  unswept.count = 0;
}

size_t PythonSide::unswept() {
  return unswept_sides().count;
}

Ticket::Ticket(const Signature* signature, std::unique_ptr<PythonSide> python)
    : signature_(signature), python_(std::move(python)), inputs_(python_->request.inputs()) {}

Ticket::~Ticket() {
  PythonSide::drop(std::move(python_));
}

bool Ticket::wait(std::optional<double> timeout_s, Clock::duration spin) {
  if (done()) return true;
  auto start = Clock::now();
  auto end = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                         std::clamp(timeout_s.value_or(1e9), 0., 1e9)));
  while (true) {
    {
      GilReleased released;
      auto spin_end = std::min(start + spin, end);
      while (!done() && Clock::now() < spin_end) {
        for (int i = 0; i < 8; ++i) spin_pause();
      }
      std::unique_lock lock(mutex_);
      waiting_ = true;
      ended_.wait_until(lock, std::min(end, Clock::now() + kSignalPeriod),
                        [this] { return done(); });
    }
    if (done()) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (Clock::now() >= end) return false;
  }
}

py::object Ticket::result() {
  switch (status) {
    case JobStatus::kOk:
      break;
    case JobStatus::kExpired:
    case JobStatus::kFailed:
      if (python_->error) {
        PyErr_SetObject(py::type::handle_of(python_->error).ptr(), python_->error.ptr());
        throw py::error_already_set();
      }
      throw Error(error, message);
    default:
      if (!message.empty()) throw Error(error, message);
      PyErr_SetNone(py::module_::import("concurrent.futures").attr("CancelledError").ptr());
      throw py::error_already_set();
  }
  if (!python_->result) {
    py::capsule owner(new std::shared_ptr<std::byte[]>(outputs_.memory()), [](void* memory) {
      delete static_cast<std::shared_ptr<std::byte[]>*>(memory);
    });
    py::dict result;
    for (size_t i = 0; i < signature_->outputs().size(); ++i) {
      result[py::str(signature_->outputs()[i].name)] = share_numpy(outputs_.view(i), owner);
    }
    python_->result = std::move(result);
  }
  return python_->result;
}

bool Ticket::attach(std::shared_ptr<Mailbox> mailbox) {
  std::lock_guard lock(mutex_);
  if (done()) return false;
  mailbox_ = std::move(mailbox);
  return true;
}

std::shared_ptr<Mailbox> Ticket::complete() {
  std::shared_ptr<Ticket> self = std::move(self_);
  std::shared_ptr<Mailbox> mailbox;
  {
    std::lock_guard lock(mutex_);
    done_.store(true, std::memory_order_release);
    mailbox = std::move(mailbox_);
    if (waiting_) ended_.notify_all();
  }
  if (mailbox) mailbox->post(std::move(self));
  return mailbox;
}

void Mailbox::post(std::shared_ptr<Ticket> ticket) {
  std::lock_guard lock(mutex_);
  tickets_.push_back(std::move(ticket));
}

void Mailbox::signal() {
  wake_.signal();
}

py::list Mailbox::fetch() {
  wake_.clear();
  std::vector<std::shared_ptr<Ticket>> tickets;
  {
    std::lock_guard lock(mutex_);
    tickets.swap(tickets_);
  }
  py::list list(tickets.size());
  for (size_t i = 0; i < tickets.size(); ++i) list[i] = py::cast(std::move(tickets[i]));
  return list;
}

bool Mailbox::wait() {
  GilReleased released;
  {
    // The last fetch() may have taken the signal of close() with it.
    std::lock_guard lock(mutex_);
    if (closed_) return !tickets_.empty();
  }
  wake_.wait();
  std::lock_guard lock(mutex_);
  return !closed_ || !tickets_.empty();
}

void Mailbox::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wake_.signal();
}

}  // namespace headrace
