#include "attention/attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "threads/pool.h"
#include "threads/scratch.h"

namespace ridgeline {
namespace {

const AttentionKernels& kernels() {
    switch (current_isa()) {
#if defined(__x86_64__)
        case Isa::avx512_bf16: return kAvx512Bf16Attention;
        case Isa::avx512: return kAvx512Attention;
        case Isa::avx2: return kAvx2Attention;
#endif
        default: return kPortableAttention;
    }
}

/// Appending fewer vectors than this takes less time than waking another thread.
constexpr int64_t kFewVectors = 64;

/// f(item) for items [0, n), which threads take one after another. Items that differ in size, or a thread
/// that is held up, leave no other waiting.
template <class Function>
void share(int64_t n, const Function& f) {
    std::atomic<int64_t> next{0};
    const int64_t threads = std::min<int64_t>(n, pool().threads());
    parallel_for(threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread)
            for (int64_t item = next++; item < n; item = next++) f(item);
    });
}

/// How many splits of each merge are still to be computed; the thread that computes the last one merges.
class Pending {
public:
    void start(const Plan& plan) {
        if (counts_.size() < plan.merges.size())
            counts_ = std::vector<std::atomic<int32_t>>(plan.merges.size());
        for (auto& count : counts_) count.store(0, std::memory_order_relaxed);
        for (const Item& item : plan.items)
            if (item.merge >= 0) counts_[item.merge].fetch_add(1, std::memory_order_relaxed);
    }
    bool last(int64_t merge) { return counts_[merge].fetch_sub(1, std::memory_order_acq_rel) == 1; }

private:
    std::vector<std::atomic<int32_t>> counts_;
};

uint8_t* thread_memory(int64_t bytes) {
    thread_local Scratch scratch;
    return scratch.reserve(bytes);
}

}  // namespace

void check_sequences(const Sequences& sequences, int64_t tokens, int64_t units) {
    for (int64_t s = 0; s < sequences.count; ++s) {
        const std::string name = "of sequence " + std::to_string(s);
        if (sequences.rows[s] < 0 || sequences.keys(s) < 0)
            throw std::domain_error("has a negative length " + name);
        if (sequences.tables == nullptr) continue;
        const int64_t wanted = (sequences.keys(s) + tokens - 1) / tokens;
        if (wanted > sequences.table_stride)
            throw std::domain_error("has " + std::to_string(sequences.table_stride) + " columns; the " +
                                    std::to_string(sequences.keys(s)) + " keys " + name + " take " +
                                    std::to_string(wanted));
        for (int64_t i = 0; i < wanted; ++i) {
            const int32_t unit = sequences.tables[s * sequences.table_stride + i];
            if (unit < 0 || unit >= units)
                throw std::domain_error("names block " + std::to_string(unit) + " " + name + " of " +
                                        std::to_string(units));
        }
    }
}

void attention(const Attention& call) {
    const AttentionKernels& with = kernels();
    thread_local Plan plan;
    thread_local Pending pending;
    thread_local Scratch kept;
    make_plan(call, {with.item_rows, with.split_keys, pool().threads()}, plan);
    pending.start(plan);
    float* states = reinterpret_cast<float*>(kept.reserve(plan.state_floats * 4));
    const int64_t bytes = with.workspace_bytes(call, plan);
    // The threads' own copies of what belongs to this one would be others.
    const Plan& shared_plan = plan;
    Pending& shared_pending = pending;
    share(static_cast<int64_t>(plan.items.size()), [&](int64_t i) {
        uint8_t* memory = thread_memory(bytes);
        const Item& item = shared_plan.items[i];
        if (item.merge < 0) return with.run(call, shared_plan, item, nullptr, memory);
        const Merge& merge = shared_plan.merges[item.merge];
        with.run(call, shared_plan, item, states + merge.state_at, memory);
        if (shared_pending.last(item.merge))
            with.merge(call, shared_plan, merge, states + merge.state_at, memory);
    });
}

void append(const Append& call) {
    const AttentionKernels& with = kernels();
    struct Piece {
        int64_t sequence, first_row, begin, end;
    };
    thread_local std::vector<Piece> kept;
    std::vector<Piece>& pieces = kept;
    pieces.clear();
    int64_t first_row = 0;
    for (int64_t s = 0; s < call.sequences.count; ++s) {
        const int64_t rows = call.sequences.rows[s], past = call.sequences.past[s];
        for (int64_t begin = 0; begin < rows;) {  // panel by panel
            const int64_t end = std::min(rows, begin + kPanelKeys - (past + begin) % kPanelKeys);
            pieces.push_back({s, first_row, begin, end});
            begin = end;
        }
        first_row += rows;
    }
    const int64_t heads = call.layout.heads;
    const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Piece& piece = pieces[i / heads];
            with.append(call, piece.sequence, piece.first_row, piece.begin, piece.end, i % heads);
        }
    };
    const int64_t items = static_cast<int64_t>(pieces.size()) * heads;
    if (first_row * heads < kFewVectors)
        run(0, items);
    else
        parallel_for(items, run);
}

void merge_states(const StateMerge& call) {
    const AttentionKernels& with = kernels();
    parallel_for(call.rows, [&](int64_t begin, int64_t end) { with.merge_states(call, begin, end); });
}

}  // namespace ridgeline
