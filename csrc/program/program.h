#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "program/step.h"

namespace ridgeline {

/// Which rows of a step a matrix has: all of them, those whose results are wanted, or the first of each
/// sequence.
enum class Rows { all, wanted, first };

/// A float32 matrix of a step. It lies in the workspace, behind `offset` bytes for every row of the step,
/// or is output number `-1 - offset`. Rows are `stride` floats apart; a view begins at `column`.
struct Operand {
    int64_t offset;
    int64_t stride;
    int64_t column;
    int64_t columns;
    Rows rows;
};

/// Where a step's calls find what they work on. Weights, caches and outputs are addresses by number, so that
/// they may be elsewhere in the next step.
struct Frame {
    Step step;
    uint8_t* workspace;
    const uint64_t* weights;
    const uint64_t* caches;
    const uint64_t* outputs;
    const float* cosines;  // [rotations, angles, dim], of rotary embedding
    const float* sines;
    int64_t angles;

    /// Where table number `rotation` of cosines or sines begins.
    const float* table(const float* tables, int64_t rotation, int64_t dim) const {
        return tables + rotation * angles * dim;
    }

    int64_t rows(const Operand& x) const {
        switch (x.rows) {
            case Rows::wanted: return step.wanted;
            case Rows::first: return step.sequences;
            default: return step.rows;
        }
    }
    float* at(const Operand& x) const {
        const auto base = x.offset < 0 ? reinterpret_cast<float*>(outputs[-1 - x.offset])
                                       : reinterpret_cast<float*>(workspace + x.offset * step.rows);
        return base + x.column;
    }
    template <class T>
    const T* weight(int64_t number) const {
        return number < 0 ? nullptr : reinterpret_cast<const T*>(weights[number]);
    }
};

/// The kernel calls of one forward pass, replayed for any step of the same kind.
class Program {
public:
    using Call = std::function<void(const Frame&)>;

    void add(Call call) { calls_.push_back(std::move(call)); }
    void run(const Frame& frame) const;
    /// Runs, and gives the seconds of each call.
    std::vector<double> profile(const Frame& frame) const;

private:
    std::vector<Call> calls_;
};

}  // namespace ridgeline
