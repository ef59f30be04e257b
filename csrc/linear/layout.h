#pragma once

#include <cstdint>

namespace ridgeline {

enum class Format { fp32, bf16, int8, int4 };

/// Columns of a panel: the outputs whose weights are stored side by side.
constexpr int kPanel = 32;

/// How a weight [out, in] is stored. The layout is the same for every instruction set.
///
/// The outputs are cut into panels of 32. A panel is one run of memory, read from front to back,
/// in steps along the inputs; a step holds 4 bytes of each of the 32 outputs, 128 bytes in all:
///
///     fp32   1 input        bf16   2 inputs        int8   4 inputs, as q + 128
///     int4   8 inputs as q + 8: input j of the first four is the low half of byte j, input 4 + j
///            its high half
///
/// int8 has 32 fp16 scales at the panel's end. int4 is cut into groups of inputs, each followed by its
/// 32 fp16 scales; at the panel's end follow, if there are zero points, 16 bytes of them a group (output
/// c of the first 16 in the low half of byte c, output 16 + c in its high half), padded to 64 bytes.
///
/// A gated weight holds the gate in its first half of outputs and what it gates in the second; its panels
/// have 16 of each, so that both meet in one tile. Missing inputs and outputs are stored as zeros.
struct Layout {
    Format format;
    int64_t out;       // outputs of the weight; for a gated one, twice those of the product
    int64_t in;        // inputs
    int64_t group;     // int4: inputs that share a scale, 32, 64 or 128
    bool zero_points;  // int4: w = scale (q - zero), 0 <= q, zero < 16; without: scale q, -8 <= q < 8
    bool gated;

    int64_t product_columns() const { return gated ? out / 2 : out; }
    /// Columns of the product that a panel makes.
    int64_t panel_columns() const { return gated ? kPanel / 2 : kPanel; }
    int64_t panels() const { return (product_columns() + panel_columns() - 1) / panel_columns(); }

    int64_t step() const {
        return format == Format::fp32 ? 1 : format == Format::bf16 ? 2 : format == Format::int8 ? 4 : 8;
    }
    /// Inputs, rounded up to whole steps and groups.
    int64_t padded_in() const {
        const int64_t unit = format == Format::int4 ? group : step();
        return (in + unit - 1) / unit * unit;
    }
    int64_t steps() const { return padded_in() / step(); }
    int64_t groups() const { return format == Format::int4 ? padded_in() / group : 1; }
    int64_t group_steps() const { return steps() / groups(); }

    static constexpr int64_t kStepBytes = 4 * kPanel;
    static constexpr int64_t kScaleBytes = 2 * kPanel;
    static constexpr int64_t kZeroBytes = kPanel / 2;

    bool scaled() const { return format == Format::int8 || format == Format::int4; }
    int64_t group_bytes() const { return group_steps() * kStepBytes + (scaled() ? kScaleBytes : 0); }
    int64_t zero_points_at() const { return groups() * group_bytes(); }
    int64_t panel_bytes() const {
        const int64_t zeros = zero_points ? (groups() * kZeroBytes + 63) / 64 * 64 : 0;
        return zero_points_at() + zeros;
    }
    int64_t bytes() const { return panels() * panel_bytes(); }

    /// The weight's row in lane `lane` of panel `panel`, or -1 for padding.
    int64_t row(int64_t panel, int lane) const {
        const int64_t half = kPanel / 2;
        const int64_t column = panel * panel_columns() + (gated ? lane % half : lane);
        if (column >= product_columns()) return -1;
        return gated && lane >= half ? product_columns() + column : column;
    }

    struct Place {
        int64_t panel;
        int lane;
    };
    /// Where the weight's row `r` lies.
    Place place(int64_t r) const {
        const int64_t column = r % product_columns();
        const int64_t lane = column % panel_columns() + (r < product_columns() ? 0 : kPanel / 2);
        return {column / panel_columns(), static_cast<int>(lane)};
    }
};

}  // namespace ridgeline
