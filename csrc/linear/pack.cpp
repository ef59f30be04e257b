#include "linear/pack.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "linear/quantize.h"
#include "simd/half.h"
#include "threads/pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ridgeline {
namespace {

/// Row `row` of the weight as float32, padded with zeros; all zeros for row -1.
void read_row(const Layout& layout, const Matrix& weight, int64_t row, float* to) {
    std::memset(to, 0, layout.padded_in() * sizeof(float));
    if (row < 0) return;
    if (weight.dtype == Dtype::fp32) {
        std::memcpy(to, static_cast<const float*>(weight.data) + row * weight.stride,
                    layout.in * sizeof(float));
        return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(weight.data) + row * weight.stride;
    for (int64_t k = 0; k < layout.in; ++k) to[k] = from_bf16(from[k]);
}

/// Where lane `lane` keeps the 4 bytes of step `step`.
uint8_t* slot(const Layout& layout, uint8_t* panel, int64_t step, int lane) {
    const int64_t group = step / layout.group_steps(), within = step % layout.group_steps();
    return panel + group * layout.group_bytes() + within * Layout::kStepBytes + lane * 4;
}

void write_scale(const Layout& layout, uint8_t* panel, int64_t group, int lane, uint16_t scale) {
    uint8_t* scales = panel + (group + 1) * layout.group_bytes() - Layout::kScaleBytes;
    std::memcpy(scales + 2 * lane, &scale, sizeof scale);
}

void write_zero(const Layout& layout, uint8_t* panel, int64_t group, int lane, int zero) {
    uint8_t* zeros = panel + layout.zero_points_at() + group * Layout::kZeroBytes;
    zeros[lane % 16] |= static_cast<uint8_t>(lane < 16 ? zero : zero << 4);
}

void pack_lane_fp32(const Layout& layout, const float* w, uint8_t* panel, int lane) {
    for (int64_t k = 0; k < layout.steps(); ++k) std::memcpy(slot(layout, panel, k, lane), w + k, 4);
}

void pack_lane_bf16(const Layout& layout, const float* w, uint8_t* panel, int lane) {
    for (int64_t k = 0; k < layout.steps(); ++k) {
        const uint16_t pair[2] = {to_bf16(w[2 * k]), to_bf16(w[2 * k + 1])};
        std::memcpy(slot(layout, panel, k, lane), pair, 4);
    }
}

void pack_lane_int8(const Layout& layout, const float* w, uint8_t* panel, int lane, int* q) {
    write_scale(layout, panel, 0, lane, quantize_int8(w, layout.padded_in(), q).scale);
    for (int64_t k = 0; k < layout.steps(); ++k) {
        uint8_t* to = slot(layout, panel, k, lane);
        for (int j = 0; j < 4; ++j) to[j] = static_cast<uint8_t>(q[4 * k + j] + 128);
    }
}

void pack_lane_int4(const Layout& layout, const float* w, uint8_t* panel, int lane, int* q) {
    const int offset = layout.zero_points ? 0 : 8;
    for (int64_t g = 0; g < layout.groups(); ++g) {
        const float* from = w + g * layout.group;
        const Quantized run = layout.zero_points ? quantize_int4_zero(from, layout.group, q)
                                                 : quantize_int4(from, layout.group, q);
        write_scale(layout, panel, g, lane, run.scale);
        if (layout.zero_points) write_zero(layout, panel, g, lane, run.zero);
        for (int64_t k = 0; k < layout.group_steps(); ++k) {
            uint8_t* to = slot(layout, panel, g * layout.group_steps() + k, lane);
            for (int j = 0; j < 4; ++j)
                to[j] = static_cast<uint8_t>((q[8 * k + j] + offset) | (q[8 * k + 4 + j] + offset) << 4);
        }
    }
}

void pack_panel(const Layout& layout, const Matrix& weight, int64_t index, uint8_t* panel, float* row,
                int* q) {
    std::memset(panel, 0, layout.panel_bytes());
    for (int lane = 0; lane < kPanel; ++lane) {
        read_row(layout, weight, layout.row(index, lane), row);
        switch (layout.format) {
            case Format::fp32: pack_lane_fp32(layout, row, panel, lane); break;
            case Format::bf16: pack_lane_bf16(layout, row, panel, lane); break;
            case Format::int8: pack_lane_int8(layout, row, panel, lane, q); break;
            case Format::int4: pack_lane_int4(layout, row, panel, lane, q); break;
        }
    }
}

void unpack_floats(const Layout& layout, const uint8_t* panel, int lane, float* to) {
    for (int64_t k = 0; k < layout.in; ++k)
        std::memcpy(to + k, panel + k * Layout::kStepBytes + lane * 4, sizeof *to);
}

void unpack_bf16(const Layout& layout, const uint8_t* panel, int lane, float* to) {
    for (int64_t k = 0; k < layout.in; ++k) {
        uint16_t pair[2];
        std::memcpy(pair, panel + k / 2 * Layout::kStepBytes + lane * 4, sizeof pair);
        to[k] = from_bf16(pair[k % 2]);
    }
}

float read_scale(const Layout& layout, const uint8_t* panel, int64_t group, int lane) {
    uint16_t scale;
    std::memcpy(&scale, panel + (group + 1) * layout.group_bytes() - Layout::kScaleBytes + 2 * lane,
                sizeof scale);
    return from_fp16(scale);
}

void unpack_int8(const Layout& layout, const uint8_t* panel, int lane, float* to) {
    const float scale = read_scale(layout, panel, 0, lane);
    for (int64_t k = 0; k < layout.in; ++k)
        to[k] = scale * static_cast<float>(panel[k / 4 * Layout::kStepBytes + lane * 4 + k % 4] - 128);
}

void unpack_int4(const Layout& layout, const uint8_t* panel, int lane, float* to) {
    for (int64_t g = 0; g < layout.groups(); ++g) {
        const float scale = read_scale(layout, panel, g, lane);
        int zero = 8;
        if (layout.zero_points) {
            const uint8_t both = panel[layout.zero_points_at() + g * Layout::kZeroBytes + lane % 16];
            zero = lane < 16 ? both & 15 : both >> 4;
        }
        const uint8_t* steps = panel + g * layout.group_bytes() + lane * 4;
        const int64_t first = g * layout.group, inputs = std::min(layout.group, layout.in - first);
        for (int64_t k = 0; k < inputs; k += 8) {
            const uint8_t* both = steps + k / 8 * Layout::kStepBytes;
            float step[8];
            for (int j = 0; j < 4; ++j) {
                step[j] = scale * static_cast<float>((both[j] & 15) - zero);
                step[4 + j] = scale * static_cast<float>((both[j] >> 4) - zero);
            }
            std::copy_n(step, std::min<int64_t>(8, inputs - k), to + first + k);
        }
    }
}

}  // namespace

void pack(const Layout& layout, Matrix weight, uint8_t* packed, int64_t begin, int64_t end) {
    parallel_for(end - begin, [&](int64_t first, int64_t last) {
        std::vector<float> row(layout.padded_in());
        std::vector<int> q(layout.padded_in());
        for (int64_t p = begin + first; p < begin + last; ++p)
            pack_panel(layout, weight, p, packed + p * layout.panel_bytes(), row.data(), q.data());
    });
}

void unpack_row(const Layout& layout, const uint8_t* packed, int64_t row, float* to) {
    const Layout::Place place = layout.place(row);
    const uint8_t* panel = packed + place.panel * layout.panel_bytes();
    switch (layout.format) {
        case Format::fp32: return unpack_floats(layout, panel, place.lane, to);
        case Format::bf16: return unpack_bf16(layout, panel, place.lane, to);
        case Format::int8: return unpack_int8(layout, panel, place.lane, to);
        case Format::int4: return unpack_int4(layout, panel, place.lane, to);
    }
}

void unpack(const Layout& layout, const uint8_t* packed, float* weight) {
    parallel_for(layout.out, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) unpack_row(layout, packed, row, weight + row * layout.in);
    });
}

void advise_large_pages(uint8_t* start, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + page - 1) & ~(page - 1);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + bytes) & ~(page - 1);
    // Advice only: where it can't be followed nothing is lost.
    if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

}  // namespace ridgeline
