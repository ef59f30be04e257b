#pragma once

#include <cstdint>
#include <optional>

#include "attention/job.h"
#include "linear/job.h"
#include "program/program.h"
#include "rows/rows.h"

// The calls that a program is made of. Each takes the matrices' places and the weights' numbers, and finds
// the addresses in the frame of the step that it runs in.
namespace ridgeline {

/// Numbers of the step that pick rows of a table.
enum class Source { ids, positions, segments, wanted, first };

/// A vector or table among the frame's weights; number -1 is none.
struct Stored {
    int64_t number;
    Dtype dtype;
};

Program::Call embed_call(Source source, int64_t offset, Stored table, int64_t table_rows, Operand out,
                         float scale);
Program::Call embed_call(Source source, int64_t offset, int64_t packed, const Layout& layout, Operand out,
                         float scale);
Program::Call norm_call(Operand x, NormKind kind, int64_t heads, Stored weight, Stored bias, double eps,
                        Operand out);
Program::Call linear_call(Operand x, const Layout& layout, int64_t packed, Stored bias, Activation activation,
                          std::optional<Operand> residual, Operand out);
/// Rotates q and k by the step's angles number `rotation`, from 1 on, or not if it is 0; stores k and v in
/// cache number `cache` of the frame, and attends; with cache -1 each sequence attends to its own rows.
Program::Call attend_call(Operand q, Operand k, Operand v, const KvLayout& layout, int64_t cache,
                          const Mask& mask, const Score& score, int64_t rotation, Operand out);
Program::Call softcap_call(Operand x, float cap, Operand out);
Program::Call add_call(Operand a, Operand b, Operand out);
Program::Call take_rows_call(Operand x, Operand out);

}  // namespace ridgeline
