#include "program/calls.h"

#include "attention/attention.h"
#include "linear/linear.h"

namespace ridgeline {
namespace {

/// The matrix as `heads` vectors a row.
Vectors vectors(const Frame& frame, const Operand& x, int64_t heads = 1) {
    return {frame.at(x), x.stride, x.columns / heads, Dtype::fp32};
}

const int64_t* numbers(const Frame& frame, Source source) {
    const Step& step = frame.step;
    switch (source) {
        case Source::positions: return step.positions;
        case Source::segments: return step.segments;
        case Source::wanted: return step.wanted_rows;
        case Source::first: return step.first_rows;
        default: return step.ids;
    }
}

Gather gather_of(const Frame& frame, Source source, int64_t offset, int64_t table_rows, const Operand& out,
                 float scale = 1.0f) {
    return {frame.rows(out), out.columns,         numbers(frame, source), offset,
            table_rows,      vectors(frame, out), scale};
}

/// The matrix as vectors of `dim`, the rows of all sequences one after another.
HeadRows head_rows(const Frame& frame, const Operand& x, int64_t dim) {
    return {frame.at(x), Dtype::fp32, kPacked, x.stride, dim};
}

/// Turns queries or keys in place: nothing else reads them.
void rotate_rows(const Frame& frame, const Operand& x, int64_t dim, int64_t rotation) {
    const int64_t heads = x.columns / dim;
    const Vectors rows = vectors(frame, x, heads);
    rotate({frame.rows(x), heads, dim, rows, frame.table(frame.cosines, rotation, dim),
            frame.table(frame.sines, rotation, dim), frame.angles, dim, frame.step.angles, rows});
}

}  // namespace

Program::Call embed_call(Source source, int64_t offset, Stored table, int64_t table_rows, Operand out,
                         float scale) {
    return [=](const Frame& frame) {
        void* data = const_cast<void*>(frame.weight<void>(table.number));
        gather(gather_of(frame, source, offset, table_rows, out, scale), {data, out.columns, 0, table.dtype});
    };
}

Program::Call embed_call(Source source, int64_t offset, int64_t packed, const Layout& layout, Operand out,
                         float scale) {
    return [=](const Frame& frame) {
        const Gather job = gather_of(frame, source, offset, layout.out, out, scale);
        gather(job, layout, frame.weight<uint8_t>(packed));
    };
}

Program::Call norm_call(Operand x, NormKind kind, int64_t heads, Stored weight, Stored bias, double eps,
                        Operand out) {
    return [=](const Frame& frame) {
        Norm job{};
        job.kind = kind;
        job.rows = frame.rows(x);
        job.heads = heads;
        job.dim = x.columns / heads;
        job.x = vectors(frame, x, heads);
        job.weight = frame.weight<void>(weight.number);
        job.bias = frame.weight<void>(bias.number);
        job.weight_dtype = weight.dtype;
        job.eps = eps;
        job.out = vectors(frame, out, heads);
        norm(job);
    };
}

Program::Call linear_call(Operand x, const Layout& layout, int64_t packed, Stored bias, Activation activation,
                          std::optional<Operand> residual, Operand out) {
    return [=](const Frame& frame) {
        Job job{};
        job.layout = layout;
        job.weight = frame.weight<uint8_t>(packed);
        job.x = {frame.at(x), x.stride, Dtype::fp32};
        job.bias = frame.weight<void>(bias.number);
        job.bias_dtype = bias.dtype;
        if (residual) job.residual = {frame.at(*residual), residual->stride, Dtype::fp32};
        job.out = frame.at(out);
        job.out_stride = out.stride;
        job.out_dtype = Dtype::fp32;
        job.activation = activation;
        job.rows = frame.rows(out);
        linear(job);
    };
}

Program::Call attend_call(Operand q, Operand k, Operand v, const KvLayout& layout, int64_t cache,
                          const Mask& mask, const Score& score, int64_t rotation, Operand out) {
    return [=](const Frame& frame) {
        const Step& step = frame.step;
        const Sequences sequences{step.sequences, step.lengths, step.past, cache < 0 ? nullptr : step.tables,
                                  step.table_stride};
        // The two ways of turning differ in their last bits: each case does as the operators one by one do.
        Angles angles{};
        if (rotation > 0 && cache >= 0)
            angles = {frame.table(frame.cosines, rotation - 1, layout.dim),
                      frame.table(frame.sines, rotation - 1, layout.dim), layout.dim, step.angles};
        if (rotation > 0 && cache < 0) {
            rotate_rows(frame, q, layout.dim, rotation - 1);
            rotate_rows(frame, k, layout.dim, rotation - 1);
        }
        const HeadRows keys = head_rows(frame, k, layout.dim), values = head_rows(frame, v, layout.value_dim);
        Attention job{};
        job.heads = q.columns / layout.dim;
        job.sequences = sequences;
        job.queries = head_rows(frame, q, layout.dim);
        job.angles = angles;
        job.source.layout = layout;
        if (cache < 0) {
            job.source.plain = {keys, values, 0};
        } else {
            job.source.blocks = reinterpret_cast<uint8_t*>(frame.caches[cache]);
            append({sequences, keys, values, angles, layout, job.source.blocks});
        }
        job.mask = mask;
        job.score = score;
        job.out = head_rows(frame, out, layout.value_dim);
        attention(job);
    };
}

Program::Call softcap_call(Operand x, float cap, Operand out) {
    return [=](const Frame& frame) {
        softcap({frame.rows(out), out.columns, cap, vectors(frame, x), vectors(frame, out)});
    };
}

Program::Call add_call(Operand a, Operand b, Operand out) {
    return [=](const Frame& frame) {
        add({frame.rows(out), out.columns, vectors(frame, a), vectors(frame, b), vectors(frame, out)});
    };
}

Program::Call take_rows_call(Operand x, Operand out) {
    return [=](const Frame& frame) {
        const Source source = out.rows == Rows::first ? Source::first : Source::wanted;
        gather(gather_of(frame, source, 0, frame.rows(x), out), vectors(frame, x));
    };
}

}  // namespace ridgeline
