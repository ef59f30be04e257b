#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "attention/job.h"
#include "program/step.h"

namespace ridgeline {

/// What a matrix's numbers lie in: the step's workspace, or what its inputs or outputs name.
enum class Place { workspace, input, output };

/// A float32 matrix of a step. In the workspace it lies in the region of its kind of rows, behind `offset`
/// bytes for every row of that kind; otherwise `offset` is the number of the input or output. Rows are
/// `stride` floats apart; a view begins at `column`, and has as many rows as kind `rows` has, which may be
/// another than the region's.
struct Operand {
    Place place;
    int64_t region;
    int64_t offset;
    int64_t stride;
    int64_t column;
    int64_t columns;
    int64_t rows;
};

/// Where a step's calls find what they work on. Weights, caches, inputs and outputs are addresses by number,
/// so that they may be elsewhere in the next step.
struct Frame {
    Step step;
    uint8_t* workspace;
    std::vector<int64_t> regions;  // where in the workspace those of each kind of rows begin
    const uint64_t* weights;
    const uint64_t* caches;
    std::vector<uint64_t> inputs;
    std::vector<uint64_t> outputs;

    int64_t rows(const Operand& x) const { return step.rows[x.rows]; }
    float* at(const Operand& x) const {
        const auto base = [&]() -> float* {
            switch (x.place) {
                case Place::input: return reinterpret_cast<float*>(inputs[x.offset]);
                case Place::output: return reinterpret_cast<float*>(outputs[x.offset]);
                default:
                    return reinterpret_cast<float*>(workspace + regions[x.region] +
                                                    x.offset * step.rows[x.region]);
            }
        }();
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
