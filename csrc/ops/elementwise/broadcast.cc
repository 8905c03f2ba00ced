// How an elementwise loop is spread over the Requests of a Batch.
#include <algorithm>

#include "core/copy.h"
#include "core/strided.h"
#include "ops/elementwise/elementwise.h"

namespace headrace {
namespace {

// Elements below which starting another thread costs more than it saves.
constexpr int64_t kMinElements = 16384;
// A shorter row has too large a share of cache lines that it does not fill.
constexpr int64_t kMinStreamed = 256;

// How an input stands to the output, for all Requests alike.
enum class Reach { kFull, kRow, kColumn, kScalar, kOther };

// True if the input's dims are the last dims of the output, for every Request.
bool is_row(const Segments& input, const Segments& output, size_t requests) {
  const Shape& row = input.shape(0);
  for (size_t r = 0; r < requests; ++r) {
    const Shape& full = output.shape(r);
    int rank = row.rank();
    int lead = 0;
    while (lead < rank && row[lead] == 1) ++lead;
    if (rank - lead > full.rank()) return false;
    for (int i = lead; i < rank; ++i) {
      if (row[i] != full[full.rank() - rank + i]) return false;
    }
  }
  return true;
}

// True if the input has the output's dims except for 1 in place of the last, for every Request.
bool is_column(const Segments& input, const Segments& output, size_t requests) {
  if (input.shared && requests > 1) return false;
  for (size_t r = 0; r < requests; ++r) {
    const Shape& column = input.shape(r);
    const Shape& full = output.shape(r);
    if (column.rank() != full.rank() || full.rank() == 0) return false;
    if (column[column.rank() - 1] != 1 || full[full.rank() - 1] != output.shape(0)[full.rank() - 1])
      return false;
    for (int i = 0; i + 1 < full.rank(); ++i) {
      if (column[i] != full[i]) return false;
    }
  }
  return true;
}

Reach reach_of(const Segments& input, const Segments& output, size_t requests) {
  bool one_segment = input.shared || requests == 1;
  if (one_segment && input.shape(0).elements() == 1) return Reach::kScalar;
  if (!input.shared || requests == 1) {
    bool full = true;
    for (size_t r = 0; r < requests && full; ++r) {
      full = input.shape(r).elements() == output.shape(r).elements();
    }
    if (full) return Reach::kFull;
  }
  if (one_segment && is_row(input, output, requests)) return Reach::kRow;
  return is_column(input, output, requests) ? Reach::kColumn : Reach::kOther;
}

struct Operands {
  std::span<const Segments> inputs;
  const Segments& output;
  int64_t input_size[LoopArgs::kMaxInputs] = {};
  int64_t output_size;
  ElementLoop loop;
  const void* params;
  bool streams;
};

// All Requests at once, as rows of `width` elements. Where no input is a row or a column there is
// only one loop per thread.
void run_rows(const OpRun& run, const Operands& op, const Reach* reach, int64_t width,
              bool one_row) {
  int64_t rows = one_row ? op.output.elements() : op.output.elements() / width;
  int64_t per_row = one_row ? 1 : width;
  int64_t min_rows = std::max<int64_t>(1, kMinElements / std::max<int64_t>(per_row, 1));
  run.parallel_ranges(rows, min_rows, [&](int64_t begin, int64_t end, int) {
    LoopArgs args{};
    args.params = op.params;
    args.streams = op.streams && (one_row || width >= kMinStreamed);
    args.n = one_row ? end - begin : width;
    int64_t advance[LoopArgs::kMaxInputs] = {};
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      bool moves = reach[i] == Reach::kFull || reach[i] == Reach::kRow;
      args.step[i] = moves ? 1 : 0;
      int64_t elements = reach[i] == Reach::kFull ? per_row : reach[i] == Reach::kColumn ? 1 : 0;
      advance[i] = elements * op.input_size[i];
      args.in[i] = op.inputs[i].data + begin * advance[i];
    }
    std::byte* out = op.output.data + begin * per_row * op.output_size;
    for (int64_t row = begin; row < (one_row ? begin + 1 : end); ++row) {
      args.out = out;
      op.loop(args);
      for (size_t i = 0; i < op.inputs.size(); ++i) {
        args.in[i] = static_cast<const std::byte*>(args.in[i]) + advance[i];
      }
      out += width * op.output_size;
    }
  });
}

void run_request(const OpRun& run, const Operands& op, size_t request, bool split) {
  TensorView out = op.output.view(request);
  Strides strides[LoopArgs::kMaxInputs];
  const std::byte* base[LoopArgs::kMaxInputs] = {};
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    TensorView in = op.inputs[i].view(request);
    strides[i] = broadcast_strides(in.shape, out.shape);
    base[i] = static_cast<const std::byte*>(in.data);
  }
  Nest nest(out.shape, {strides, op.inputs.size()});
  auto walk = [&](int64_t begin, int64_t end, int) {
    LoopArgs args{};
    args.params = op.params;
    args.streams = op.streams && nest.inner() >= kMinStreamed;
    args.n = nest.inner();
    auto* to = static_cast<std::byte*>(out.data) + begin * nest.inner() * op.output_size;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      args.step[i] = nest.inner_stride(static_cast<int>(i));
    }
    nest.walk(begin, end, [&](const int64_t* offsets) {
      for (size_t i = 0; i < op.inputs.size(); ++i) {
        args.in[i] = base[i] + offsets[i] * op.input_size[i];
      }
      args.out = to;
      op.loop(args);
      to += nest.inner() * op.output_size;
    });
  };
  if (split) {
    int64_t min_outer = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, nest.inner()));
    run.parallel_ranges(nest.outer(), min_outer, walk);
  } else {
    walk(0, nest.outer(), 0);
  }
}

}  // namespace

void run_broadcast(const OpRun& run, std::span<const Segments> inputs, const Segments& output,
                   ElementLoop loop, const void* params) {
  size_t requests = run.requests();
  if (output.elements() == 0) return;
  Operands op{inputs, output, {}, size_of(output.dtype), loop, params, false};
  op.streams = run.stores_past_caches();
  for (const Segments& input : inputs) op.streams = op.streams && input.data != output.data;
  Reach reach[LoopArgs::kMaxInputs] = {};
  int64_t row = -1;
  bool rows = false;
  bool columns = false;
  bool other = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    op.input_size[i] = size_of(inputs[i].dtype);
    reach[i] = reach_of(inputs[i], output, requests);
    if (reach[i] == Reach::kRow) {
      int64_t elements = inputs[i].shape(0).elements();
      other = other || (rows && elements != row);
      row = elements;
      rows = true;
    }
    columns = columns || reach[i] == Reach::kColumn;
    other = other || reach[i] == Reach::kOther;
  }
  if (columns) {
    const Shape& shape = output.shape(0);
    int64_t width = shape[shape.rank() - 1];
    other = other || (rows && row != width);
    row = width;
  }
  if (!other) return run_rows(run, op, reach, row, !rows && !columns);
  bool split = static_cast<int>(requests) < run.threads();
  if (split) {
    for (size_t r = 0; r < requests; ++r) run_request(run, op, r, true);
    return;
  }
  int64_t each = std::max<int64_t>(1, output.elements() / static_cast<int64_t>(requests));
  run.parallel_ranges(static_cast<int64_t>(requests), std::max<int64_t>(1, kMinElements / each),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t r = begin; r < end; ++r) {
                          run_request(run, op, static_cast<size_t>(r), false);
                        }
                      });
}

void ElementwiseOp::infer(InputViews inputs, std::span<Shape> outputs) const {
  outputs[0] = inputs[0].shape;
  for (size_t i = 1; i < inputs.size(); ++i) outputs[0] = broadcast(outputs[0], inputs[i].shape);
}

void ElementwiseOp::run(const OpRun& run) const {
  Segments inputs[LoopArgs::kMaxInputs];
  for (size_t i = 0; i < run.inputs(); ++i) inputs[i] = run.input(i);
  if (swapped_) std::swap(inputs[0], inputs[1]);
  run_broadcast(run, {inputs, run.inputs()}, run.output(0), loop_);
}

}  // namespace headrace
