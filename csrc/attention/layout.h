#pragma once

#include <cstdint>

namespace ridgeline {

enum class KvFormat { fp32, bf16, int8 };

/// Keys of a panel: what a kernel multiplies at a time.
constexpr int kPanelKeys = 32;
/// Panels of a block of the cache. One query over a long cache of 16 heads of 128 reads 35 GB/s from blocks
/// of 32 tokens and 41 from blocks of 64, since each run of memory costs a start; but what requests share,
/// and what a short one wastes, is counted in blocks.
constexpr int kBlockPanels = 1;
constexpr int kBlockKeys = kBlockPanels * kPanelKeys;
/// The longest vector of a head.
constexpr int64_t kMostDim = 256;
/// Elements that values are padded to a multiple of: the widest register.
constexpr int64_t kPadding = 16;

/// A panel as it is stored.
struct StoredPanel {
    uint8_t* keys;
    uint8_t* values;
    float* key_scales;  // int8 only
    float* value_scales;
};

/// How the keys and values of a block of tokens are stored, head by head, in one record:
///
///     keys          [panels][dim / step][32][step]       the lanes of a register are keys
///     values        [panels][32 / step][value_dim][step]
///     int8 only:    float32 scale of each key, then of each value
///
/// step is 2, and 1 for fp32: so many elements are multiplied and added in one lane. dim is padded to a
/// multiple of 2, value_dim to one of 16, with zeros. Records begin at multiples of 64 bytes. An int8
/// element q stands for scale q.
struct KvLayout {
    KvFormat format;
    int64_t heads;
    int64_t dim;
    int64_t value_dim;

    int64_t step() const { return format == KvFormat::fp32 ? 1 : 2; }
    int64_t element_bytes() const { return format == KvFormat::fp32 ? 4 : format == KvFormat::bf16 ? 2 : 1; }
    int64_t padded_dim() const { return (dim + step() - 1) / step() * step(); }
    int64_t padded_value_dim() const { return (value_dim + kPadding - 1) / kPadding * kPadding; }

    /// Of one panel.
    int64_t key_bytes() const { return padded_dim() * kPanelKeys * element_bytes(); }
    int64_t value_bytes() const { return padded_value_dim() * kPanelKeys * element_bytes(); }
    int64_t scale_bytes() const { return format == KvFormat::int8 ? 2 * kPanelKeys * 4 : 0; }

    int64_t record_bytes() const { return kBlockPanels * (key_bytes() + value_bytes() + scale_bytes()); }
    int64_t block_bytes() const { return heads * record_bytes(); }

    /// The panel of `head` that holds key `key` of the sequence whose blocks `table` lists.
    StoredPanel panel(uint8_t* blocks, const int32_t* table, int64_t key, int64_t head) const {
        const int64_t block = table[key / kBlockKeys], at = key / kPanelKeys % kBlockPanels;
        uint8_t* record = blocks + block * block_bytes() + head * record_bytes();
        uint8_t* values = record + kBlockPanels * key_bytes();
        float* scales = reinterpret_cast<float*>(values + kBlockPanels * value_bytes());
        return {record + at * key_bytes(), values + at * value_bytes(), scales + at * kPanelKeys,
                scales + kBlockKeys + at * kPanelKeys};
    }
};

}  // namespace ridgeline
