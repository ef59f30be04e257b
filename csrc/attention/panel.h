#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/tile.h"

// Rows of keys and values laid out as a panel: see layout.h.
namespace ridgeline {
namespace {

/// Key rows become columns: [32][words] -> [words][32]; rows from `count` on are zeros.
inline void lay_keys(const uint8_t* const* rows, int64_t count, int64_t bytes, uint8_t* to) {
    constexpr int lanes = Arch::kLanes;
    const int64_t words = (bytes + 3) / 4;
    for (int64_t lane = 0; lane < kPanelKeys; lane += lanes)
        for (int64_t word = 0; word < words; word += lanes) {
            const int64_t there = std::min<int64_t>(lanes * 4, bytes - word * 4);
            Arch::I square[lanes];
            for (int i = 0; i < lanes; ++i) {
                if (lane + i >= count) {
                    square[i] = Arch::set_int(0);
                } else if (there == lanes * 4) {
                    square[i] = Arch::load_int(rows[lane + i] + word * 4);
                } else {
                    uint8_t part[lanes * 4] = {};
                    std::memcpy(part, rows[lane + i] + word * 4, there);
                    square[i] = Arch::load_int(part);
                }
            }
            Arch::transpose(square);
            for (int64_t i = 0; i < std::min<int64_t>(lanes, words - word); ++i)
                Arch::store_int(to + (word + i) * kStepBytes + lane * 4, square[i]);
        }
}

/// Value rows as they are, padded with zeros.
inline void lay_values(Fp32, const uint8_t* const* rows, int64_t count, int64_t dim, int64_t width,
                       uint8_t* to) {
    for (int64_t key = 0; key < kPanelKeys; ++key, to += width * 4) {
        const int64_t n = key < count ? dim : 0;
        if (n > 0) std::memcpy(to, rows[key], n * 4);
        std::memset(to + n * 4, 0, (width - n) * 4);
    }
}

/// Pairs of value rows, element by element.
inline void lay_values(Bf16, const uint8_t* const* rows, int64_t count, int64_t dim, int64_t width,
                       uint8_t* to) {
    static constexpr uint16_t kZeros[kMostDim] = {};
    for (int64_t key = 0; key < kPanelKeys; key += 2, to += width * 4) {
        const auto row = [&](int64_t at) {
            return at < count ? reinterpret_cast<const uint16_t*>(rows[at]) : kZeros;
        };
        const uint16_t *first = row(key), *second = row(key + 1);
        int64_t i = 0;
        for (; i + Arch::kLanes <= dim; i += Arch::kLanes) {
            const Arch::I low = Arch::template shift_right<16>(Arch::bits(Arch::load_bf16(first + i)));
            Arch::store_int(to + i * 4, Arch::or_int(low, Arch::bits(Arch::load_bf16(second + i))));
        }
        for (; i < dim; ++i) {
            std::memcpy(to + i * 4, first + i, 2);
            std::memcpy(to + i * 4 + 2, second + i, 2);
        }
        std::memset(to + dim * 4, 0, (width - dim) * 4);
    }
}

}  // namespace
}  // namespace ridgeline
