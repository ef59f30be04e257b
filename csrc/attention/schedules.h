#pragma once

#include "attention/append.h"
#include "attention/flash.h"
#include "attention/kernels.h"
#include "attention/merge_states.h"
#include "attention/naive.h"

// The attention of one instruction set, as its kernels_*.cpp compiles it. Everything here and in the headers
// that define kernels has internal linkage: the linker must never take one set's copy of a function
// for another's.
namespace ridgeline {
namespace {

/// Rows of an item, in blocks that the tile products take.
constexpr int64_t kItemRows = 8 * Arch::kMaxRows;

template <class Number>
Workspace<Number> workspace(const Attention& call, const Plan& plan, uint8_t* memory) {
    const int64_t keys = call.schedule == Schedule::naive ? whole_tiles(plan.most_keys) : 0;
    return Workspace<Number>(call, plan.most_rows, keys, memory);
}

/// f(Number) for what the call's keys are multiplied as; int8 keys become bf16, which holds them exactly.
template <class Function>
auto with_number(const Attention& call, const Function& f) {
    if (call.source.layout.format == KvFormat::fp32) return f(Fp32{});
    return f(Bf16{});
}

int64_t workspace_bytes(const Attention& call, const Plan& plan) {
    return with_number(call,
                       [&](auto number) { return workspace<decltype(number)>(call, plan, nullptr).bytes; });
}

void run_item(const Attention& call, const Plan& plan, const Item& item, float* states, uint8_t* memory) {
    with_number(call, [&](auto number) {
        auto work = workspace<decltype(number)>(call, plan, memory);
        Run<decltype(number)> run(call, item, work);
        if (call.schedule == Schedule::naive)
            run_naive(run);
        else if (item.merge >= 0)
            run_splits(run, states);
        else
            run_flash(run);
    });
}

void merge_item(const Attention& call, const Plan& plan, const Merge& merge, float* states, uint8_t* memory) {
    with_number(call, [&](auto number) {
        auto work = workspace<decltype(number)>(call, plan, memory);
        Run<decltype(number)> run(call, merge.item, work);
        merge_splits(run, states);
    });
}

constexpr AttentionKernels kAttention = {kItemRows,  kSplitKeys,  workspace_bytes, run_item,
                                         merge_item, append_rows, merge_state_rows};

}  // namespace
}  // namespace ridgeline
