#pragma once

#include <cstdint>

namespace ridgeline {

/// A packed batch, as one array of int64 that is filled anew for every step:
///
///     rows, sequences, wanted, segmented      the header
///     ids[rows]
///     positions[rows]                         of each row in its sequence
///     angles[rows]                            the row of the rotary tables that each row takes
///     segments[rows]                          if segmented
///     wanted_rows[wanted]                     the rows whose results are asked for
///     first_rows[sequences]                   first row of each sequence
///     lengths[sequences]                      rows of each sequence
///     past[sequences]                         tokens of it that the cache holds already
///
/// and the cache's blocks of each sequence, int32 [sequences][table_stride].
struct Step {
    int64_t rows, sequences, wanted;
    const int64_t *ids, *positions, *angles, *segments, *wanted_rows, *first_rows, *lengths, *past;
    const int32_t* tables;
    int64_t table_stride;

    static Step read(const int64_t* p, const int32_t* tables, int64_t table_stride) {
        Step step{};
        step.rows = p[0];
        step.sequences = p[1];
        step.wanted = p[2];
        const bool segmented = p[3] != 0;
        p += 4;
        const auto take = [&p](int64_t n) {
            const int64_t* begin = p;
            p += n;
            return begin;
        };
        step.ids = take(step.rows);
        step.positions = take(step.rows);
        step.angles = take(step.rows);
        step.segments = segmented ? take(step.rows) : nullptr;
        step.wanted_rows = take(step.wanted);
        step.first_rows = take(step.sequences);
        step.lengths = take(step.sequences);
        step.past = take(step.sequences);
        step.tables = tables;
        step.table_stride = table_stride;
        return step;
    }
};

}  // namespace ridgeline
