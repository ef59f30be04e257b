#include <algorithm>
#include <vector>

#include "experts/experts.h"
#include "linear/linear.h"
#include "rows/rows.h"
#include "threads/scratch.h"

namespace ridgeline {
namespace {

/// Most bytes of rows that are gathered, and of what is made of them, at a time.
constexpr int64_t kMostBytes = 256 * 1024 * 1024;

/// Where the rows of each expert lie once they are sorted: by expert, and then by row.
struct Order {
    std::vector<int64_t> begin;   // [experts + 1]
    std::vector<int64_t> rows;    // [taken], the row that lies there
    std::vector<int64_t> places;  // [rows][chosen], where each row lies

    void sort(const Routes& routes, int64_t count, int64_t experts) {
        begin.assign(experts + 1, 0);
        each(routes, count, [&](int64_t, int64_t, int64_t expert) { ++begin[expert + 1]; });
        for (int64_t e = 0; e < experts; ++e) begin[e + 1] += begin[e];
        rows.resize(count * routes.chosen);
        places.resize(count * routes.chosen);
        next_.assign(begin.begin(), begin.end() - 1);
        each(routes, count, [&](int64_t row, int64_t i, int64_t expert) {
            const int64_t place = next_[expert]++;
            rows[place] = row;
            places[row * routes.chosen + i] = place;
        });
    }

private:
    template <class Function>
    static void each(const Routes& routes, int64_t count, const Function& f) {
        for (int64_t row = 0; row < count; ++row)
            for (int64_t i = 0; i < routes.chosen; ++i) f(row, i, routes.experts[row * routes.stride + i]);
    }

    std::vector<int64_t> next_;
};

/// to = act(from weight^T), float32 rows that lie one after another.
void multiply(const Layout& layout, uint64_t weight, Activation activation, const float* from, float* to,
              int64_t rows) {
    Job job{};
    job.layout = layout;
    job.weight = reinterpret_cast<const uint8_t*>(weight);
    job.x = {from, layout.in, Dtype::fp32};
    job.out = to;
    job.out_stride = layout.product_columns();
    job.out_dtype = Dtype::fp32;
    job.activation = activation;
    job.rows = rows;
    linear(job);
}

Vectors matrix(const float* data, int64_t stride) {
    return {const_cast<float*>(data), stride, stride, Dtype::fp32};
}

void mix_block(const Mixture& job) {
    thread_local Order order;
    thread_local Scratch scratch;
    const int64_t taken = job.rows * job.routes.chosen, width = job.gate_up.in, inner = job.down.in;
    const int64_t columns = job.down.product_columns();
    order.sort(job.routes, job.rows, job.experts);
    const int64_t hidden_at = aligned(taken * width * 4), outputs_at = hidden_at + aligned(taken * inner * 4);
    uint8_t* memory = scratch.reserve(outputs_at + taken * columns * 4);
    float* gathered = reinterpret_cast<float*>(memory);
    float* hidden = reinterpret_cast<float*>(memory + hidden_at);
    float* outputs = reinterpret_cast<float*>(memory + outputs_at);
    gather({taken, width, order.rows.data(), 0, job.rows, matrix(gathered, width)},
           matrix(job.x, job.x_stride));
    for (int64_t e = 0; e < job.experts; ++e) {
        const int64_t begin = order.begin[e], rows = order.begin[e + 1] - begin;
        if (rows == 0) continue;
        multiply(job.gate_up, job.gates[e], job.activation, gathered + begin * width, hidden + begin * inner,
                 rows);
        multiply(job.down, job.downs[e], Activation::none, hidden + begin * inner, outputs + begin * columns,
                 rows);
    }
    weighted_sum({job.rows, columns, job.routes.chosen, matrix(outputs, columns), order.places.data(),
                  job.routes.weights, job.routes.stride, matrix(job.residual, job.residual_stride),
                  matrix(job.out, job.out_stride)});
}

}  // namespace

void mix(const Mixture& job) {
    const int64_t each = job.routes.chosen * 4 * (job.gate_up.in + job.down.in + job.down.product_columns());
    const int64_t most = std::max<int64_t>(1, kMostBytes / each);
    for (int64_t begin = 0; begin < job.rows; begin += most) {
        Mixture block = job;
        block.rows = std::min(most, job.rows - begin);
        block.x += begin * job.x_stride;
        block.routes.experts += begin * job.routes.stride;
        block.routes.weights += begin * job.routes.stride;
        if (job.residual != nullptr) block.residual += begin * job.residual_stride;
        block.out += begin * job.out_stride;
        mix_block(block);
    }
}

}  // namespace ridgeline
