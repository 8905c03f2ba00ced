// Chains of ops that are run block by block instead of op by op.
//
// Row by row: in a transformer everything between two attentions is one chain. A thread takes some
// rows through all of it before it takes the next: what the ops hand each other stays in its cache
// and is never a tensor of the whole Batch, and the threads meet once per chain instead of once per
// op. Image by image: convolutions are chained likewise, as many images at a time as leave their
// maps in the caches. Element by element: so are sums, casts, activations and the like, where every
// value has the same elements.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "runtime/program.h"

namespace headrace {

// What a chain is taken through at a time: rows or images, counted over all Requests.
struct ChainPart {
  bool images;
  int64_t begin, end;
  int64_t width = 0;  // elements of a row; 0: the last dim of each value
};

// What one thread works in.
class ChainWorkspace {
 public:
  explicit ChainWorkspace(const Program& program);

  // Takes a part of the chain's values through `steps`. `values` are those of the whole Batch; one
  // without data is the chain's own.
  void run(std::span<const Step> steps, std::span<const Segments> values, const ChainPart& part,
           ThreadPool& pool);
  // Call when nothing runs.
  void trim() { arena_.trim(); }
  int64_t arena_bytes() const { return arena_.capacity_bytes(); }

 private:
  // The part of a value: rows as one segment, images as one for each Request that they are of.
  struct Slice {
    std::vector<Shape> shapes;
    std::vector<int64_t> offsets;
    Segments segments;
  };
  void cut(const Segments& whole, const ChainPart& part, Slice& to) const;
  std::byte* room_for(const Step& step, const Segments& output);
  void release(ValueId root);
  void run_step(const Step& step, std::span<const Segments> values, const ChainPart& part,
                ThreadPool& pool);

  const Program& program_;
  Arena arena_;
  std::vector<std::byte*> own_;  // per value: the memory of one that lives within the chain
  std::vector<Slice> slices_;
  std::vector<Segments> inputs_;
  std::vector<Segments> outputs_;
};

// Sets Step::chain, Step::images and Step::elements throughout.
void plan_chains(Program& program);

// The rows of a value: elements of all but the last dim, over all Requests.
int64_t chain_rows(const Segments& segments);

}  // namespace headrace
