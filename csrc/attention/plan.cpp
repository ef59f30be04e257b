#include "attention/plan.h"

#include <algorithm>

#include "attention/mask.h"

namespace ridgeline {
namespace {

/// Ranges of rows with a larger share of the work than one in so many a thread are cut at the splits.
constexpr int64_t kRangesPerThread = 4;
/// Into about so many items a thread: few, because memory is read at full speed only after a start, and
/// enough for no thread to wait long for another.
constexpr int64_t kItemsPerThread = 16;

struct RowRange {
    Item item;
    Seen first, last;  // what its first and last row see
    int64_t cost;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

RowRange row_range(const Attention& call, Item item, int64_t split_keys) {
    const QueryRows rows(call, item);
    RowRange range{item, seen_at(call.mask, rows.position(0), rows.keys),
                   seen_at(call.mask, rows.position(rows.count() - 1), rows.keys), 0};
    range.item.split_end = divide_up(std::max(range.last.end, range.last.sinks), split_keys);
    const int64_t keys = std::max<int64_t>(0, range.last.end - range.first.begin) + range.last.sinks;
    // Reading a key costs as much as multiplying it with some rows.
    range.cost = (rows.count() + 8) * keys;
    return range;
}

/// The rows of a sequence for one head of keys in ranges of like size; those of most keys come first,
/// because short items at the end leave no thread waiting.
void cut_rows(const Attention& call, Item item, const PlanLimits& limits, std::vector<RowRange>& ranges) {
    const int64_t rows = call.sequences.rows[item.sequence] * call.group();
    // The naive schedule has the scores of all rows in memory.
    const bool whole = call.schedule == Schedule::naive;
    const int64_t count = whole ? std::min<int64_t>(rows, 1) : divide_up(rows, limits.item_rows);
    for (int64_t i = count - 1; i >= 0; --i) {
        item.row_begin = rows * i / count;
        item.row_end = rows * (i + 1) / count;
        ranges.push_back(row_range(call, item, limits.split_keys));
    }
}

/// Items of up to `item_splits` splits each.
void add_splits(const Attention& call, const RowRange& range, int64_t item_splits, int64_t split_keys,
                Plan& plan) {
    const int64_t width = call.source.layout.padded_value_dim();
    Item item = range.item;
    item.merge = static_cast<int64_t>(plan.merges.size());
    plan.merges.push_back({range.item, plan.state_floats});
    for (int64_t split = 0;;) {
        split = next_tile(range.first, range.last, split, split_keys);
        if (split >= range.item.split_end) break;
        item.split_begin = split;
        item.split_end = split = std::min(split + item_splits, range.item.split_end);
        plan.items.push_back(item);
    }
    plan.state_floats += range.item.split_end * (item.row_end - item.row_begin) * (width + 2);
}

/// Ranges of rows whose splits several threads share: by the call's will, or those that make up so much of
/// the work that a thread would wait for another to finish one.
bool is_cut(const Attention& call, const RowRange& range, const PlanLimits& limits, int64_t cost) {
    if (range.item.split_end < 2) return false;
    if (call.schedule == Schedule::split_kv) return true;
    return call.schedule == Schedule::automatic && limits.threads > 1 &&
           range.cost * limits.threads * kRangesPerThread > cost;
}

}  // namespace

void make_plan(const Attention& call, const PlanLimits& limits, Plan& plan) {
    thread_local std::vector<RowRange> ranges;
    ranges.clear();
    plan.items.clear();
    plan.merges.clear();
    plan.state_floats = plan.most_rows = plan.most_keys = 0;
    Item item{};
    item.merge = -1;
    for (; item.sequence < call.sequences.count; ++item.sequence) {
        for (item.kv_head = 0; item.kv_head < call.source.layout.heads; ++item.kv_head)
            cut_rows(call, item, limits, ranges);
        plan.most_keys = std::max(plan.most_keys, call.sequences.keys(item.sequence));
        item.first_row += call.sequences.rows[item.sequence];
        item.first_key += std::max<int64_t>(0, call.sequences.keys(item.sequence));
    }
    int64_t cost = 0, splits = 0;
    for (const RowRange& range : ranges) cost += range.cost;
    for (const RowRange& range : ranges)
        if (is_cut(call, range, limits, cost)) splits += range.item.split_end;
    const int64_t item_splits = divide_up(splits, limits.threads * kItemsPerThread);
    for (const RowRange& range : ranges) {
        plan.most_rows = std::max(plan.most_rows, range.item.row_end - range.item.row_begin);
        if (is_cut(call, range, limits, cost))
            add_splits(call, range, item_splits, limits.split_keys, plan);
        else
            plan.items.push_back(range.item);
    }
}

}  // namespace ridgeline
