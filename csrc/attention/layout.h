#pragma once

#include <cstdint>

namespace ridgeline {

enum class KvFormat { fp32, bf16, int8 };

/// Keys of a panel, which is also a block of the cache: what a kernel multiplies at a time.
constexpr int kPanelKeys = 32;
/// The longest vector of a head.
constexpr int64_t kMostDim = 256;

/// How the keys and values of a block of 32 tokens are stored, head by head, in one record:
///
///     keys          [dim / step][32][step]       the lanes of a register are keys
///     values        [32 / step][value_dim][step]
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
    int64_t element_bytes() const {
        return format == KvFormat::fp32 ? 4 : format == KvFormat::bf16 ? 2 : 1;
    }
    int64_t padded_dim() const { return (dim + step() - 1) / step() * step(); }
    int64_t padded_value_dim() const { return (value_dim + 15) / 16 * 16; }

    int64_t key_bytes() const { return padded_dim() * kPanelKeys * element_bytes(); }
    int64_t value_bytes() const { return padded_value_dim() * kPanelKeys * element_bytes(); }
    int64_t key_scales_at() const { return key_bytes() + value_bytes(); }
    int64_t value_scales_at() const { return key_scales_at() + kPanelKeys * 4; }
    int64_t record_bytes() const {
        return key_scales_at() + (format == KvFormat::int8 ? 2 * kPanelKeys * 4 : 0);
    }
    int64_t block_bytes() const { return heads * record_bytes(); }
};

}  // namespace ridgeline
