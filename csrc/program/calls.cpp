#include "program/calls.h"

#include "attention/attention.h"
#include "linear/linear.h"
#include "threads/scratch.h"

namespace ridgeline {
namespace {

/// The matrix as `heads` vectors a row.
Vectors vectors(const Frame& frame, const Operand& x, int64_t heads = 1) {
    return {frame.at(x), x.stride, x.columns / heads, Dtype::fp32};
}

/// The matrix from row `row` on.
Vectors vectors_from(const Frame& frame, const Operand& x, int64_t row) {
    return {frame.at(x) + row * x.stride, x.stride, x.columns, Dtype::fp32};
}

Gather gather_of(const Frame& frame, int64_t index, int64_t offset, int64_t table_rows, const Operand& out,
                 float scale = 1.0f) {
    return {frame.rows(out),     out.columns, frame.step.indices[index], offset, table_rows,
            vectors(frame, out), scale};
}

/// The matrix as vectors of `dim`, the rows of all sequences one after another.
HeadRows head_rows(const Frame& frame, const Operand& x, int64_t dim) {
    return {frame.at(x), Dtype::fp32, kPacked, x.stride, dim};
}

/// Turns queries or keys in place: nothing else reads them.
void rotate_rows(const Frame& frame, const Operand& x, int64_t dim, const AngleTable& angles) {
    const int64_t heads = x.columns / dim;
    const Vectors rows = vectors(frame, x, heads);
    rotate({frame.rows(x), heads, angles.dim, rows, angles.cosines, angles.sines, angles.count, angles.dim,
            angles.rows, rows});
}

/// Keys or values as the kernels multiply them: rounded to bf16, in `memory`, unless the layout is fp32.
HeadRows rounded(const Frame& frame, const Operand& x, int64_t dim, const KvLayout& layout, Scratch& memory) {
    if (layout.format == KvFormat::fp32) return head_rows(frame, x, dim);
    const int64_t rows = frame.rows(x);
    uint8_t* to = memory.reserve(rows * x.columns * 2);
    copy({rows, x.columns, vectors(frame, x), {to, x.columns, x.columns, Dtype::bf16}});
    return {to, Dtype::bf16, kPacked, x.columns, dim};
}

/// Stores new keys and values in a cache.
void append_rows(const Frame& frame, const Operand& k, const Operand& v, const KvLayout& layout,
                 const Sequences& sequences, const Angles& angles, uint8_t* blocks) {
    append({sequences, head_rows(frame, k, layout.dim), head_rows(frame, v, layout.value_dim), angles, layout,
            blocks});
}

/// Numbers of experts and their weights, side by side in a row.
Routes routes_at(const Frame& frame, const Operand& x, int64_t chosen) {
    float* at = frame.at(x);
    return {reinterpret_cast<int32_t*>(at), at + chosen, x.stride, chosen};
}

/// f(rows of the first, rows of the second, where they begin) for each sequence.
template <class Function>
void each_pair(const Step& step, const TwoCuts& cuts, const Function& f) {
    const Sequences &first = step.cuts[cuts.first], &second = step.cuts[cuts.second];
    int64_t begin = 0, other = 0;
    for (int64_t s = 0; s < first.count; ++s) {
        f(first.rows[s], second.rows[s], begin, other);
        begin += first.rows[s];
        other += second.rows[s];
    }
}

}  // namespace

Program::Call embed_call(int64_t index, int64_t offset, Stored table, int64_t table_rows, Operand out,
                         float scale) {
    return [=](const Frame& frame) {
        void* data = const_cast<void*>(frame.weight<void>(table.number));
        gather(gather_of(frame, index, offset, table_rows, out, scale), {data, out.columns, 0, table.dtype});
    };
}

Program::Call embed_call(int64_t index, int64_t offset, int64_t packed, const Layout& layout, Operand out,
                         float scale) {
    return [=](const Frame& frame) {
        const Gather job = gather_of(frame, index, offset, layout.out, out, scale);
        gather(job, layout, frame.weight<uint8_t>(packed));
    };
}

Program::Call norm_call(Operand x, NormKind kind, int64_t heads, Stored weight, Stored bias, double eps,
                        std::optional<ShiftAndScale> modulation, Operand out) {
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
        if (modulation) {
            const Operand &shift = modulation->shift, &scale = modulation->scale;
            job.modulation = {frame.at(shift), frame.at(scale), shift.stride, scale.stride,
                              frame.step.indices[modulation->index]};
        }
        norm(job);
    };
}

Program::Call linear_call(Operand x, const Layout& layout, int64_t packed, Stored bias, Activation activation,
                          std::optional<Operand> residual, std::optional<OfSequences> gate, Operand out) {
    return [=](const Frame& frame) {
        Job job{};
        job.layout = layout;
        job.weight = frame.weight<uint8_t>(packed);
        job.x = {frame.at(x), x.stride, Dtype::fp32};
        job.bias = frame.weight<void>(bias.number);
        job.bias_dtype = bias.dtype;
        if (residual) job.residual = {frame.at(*residual), residual->stride, Dtype::fp32};
        if (gate)
            job.sequence_gate = {frame.at(gate->vectors), gate->vectors.stride,
                                 frame.step.indices[gate->index]};
        job.out = frame.at(out);
        job.out_stride = out.stride;
        job.out_dtype = Dtype::fp32;
        job.activation = activation;
        job.rows = frame.rows(out);
        linear(job);
    };
}

Program::Call attend_call(Operand q, std::optional<Operand> k, std::optional<Operand> v,
                          const Attended& attended, Operand out) {
    return [=](const Frame& frame) {
        thread_local Scratch key_memory, value_memory;
        const KvLayout& layout = attended.layout;
        Sequences sequences = frame.step.cuts[attended.cut];
        Attention job{};
        job.heads = q.columns / layout.dim;
        job.source.layout = layout;
        // The two ways of turning differ in their last bits: each case does as the operators one by one do.
        const bool turns = attended.rotation >= 0;
        if (attended.cache < 0) {
            sequences.tables = nullptr;
            if (turns) {
                const AngleTable& angles = frame.step.angles[attended.rotation];
                rotate_rows(frame, q, layout.dim, angles);
                rotate_rows(frame, *k, layout.dim, angles);
            }
            job.source.plain = {rounded(frame, *k, layout.dim, layout, key_memory),
                                rounded(frame, *v, layout.value_dim, layout, value_memory), 0};
        } else {
            if (turns) {
                const AngleTable& angles = frame.step.angles[attended.rotation];
                job.angles = {angles.cosines, angles.sines, angles.dim, angles.rows};
            }
            job.source.blocks = reinterpret_cast<uint8_t*>(frame.caches[attended.cache]);
            if (k) append_rows(frame, *k, *v, layout, sequences, job.angles, job.source.blocks);
        }
        job.sequences = sequences;
        job.queries = head_rows(frame, q, layout.dim);
        job.mask = attended.mask;
        job.score = attended.score.score;
        job.score.bias = frame.weight<float>(attended.score.bias);
        job.score.reach = attended.score.reach;
        job.out = head_rows(frame, out, layout.value_dim);
        attention(job);
    };
}

Program::Call store_call(Operand k, Operand v, const KvLayout& layout, int64_t cache, int64_t cut) {
    return [=](const Frame& frame) {
        append_rows(frame, k, v, layout, frame.step.cuts[cut], {},
                    reinterpret_cast<uint8_t*>(frame.caches[cache]));
    };
}

Program::Call softcap_call(Operand x, float cap, Operand out) {
    return [=](const Frame& frame) {
        softcap({frame.rows(out), out.columns, cap, vectors(frame, x), vectors(frame, out)});
    };
}

Program::Call activate_call(Operand x, Activation activation, Operand out) {
    return [=](const Frame& frame) {
        activate({frame.rows(out), out.columns, activation, false, vectors(frame, x), vectors(frame, out)});
    };
}

Program::Call add_call(Operand a, Operand b, Operand out) {
    return [=](const Frame& frame) {
        add({frame.rows(out), out.columns, vectors(frame, a), vectors(frame, b), vectors(frame, out)});
    };
}

Program::Call add_vector_call(Operand x, Stored vector, int64_t parts, Operand out) {
    return [=](const Frame& frame) {
        const auto data = static_cast<uint8_t*>(const_cast<void*>(frame.weight<void>(vector.number)));
        const int64_t width = x.columns, bytes = vector.dtype == Dtype::fp32 ? 4 : 2;
        for (int64_t part = 0; part < parts; ++part) {
            Vectors to = vectors(frame, out);
            to.data = frame.at(out) + part * width;
            add({frame.rows(out), width, vectors(frame, x),
                 Vectors{data + part * width * bytes, 0, 0, vector.dtype}, to});
        }
    };
}

Program::Call take_rows_call(Operand x, int64_t index, Operand out) {
    return [=](const Frame& frame) {
        gather(gather_of(frame, index, 0, frame.rows(x), out), vectors(frame, x));
    };
}

Program::Call join_columns_call(Operand a, Operand b, Operand out) {
    return [=](const Frame& frame) {
        Vectors to = vectors(frame, out);
        copy({frame.rows(out), a.columns, vectors(frame, a), to});
        to.data = frame.at(out) + a.columns;
        copy({frame.rows(out), b.columns, vectors(frame, b), to});
    };
}

Program::Call join_rows_call(Operand a, Operand b, const TwoCuts& cuts, Operand out) {
    return [=](const Frame& frame) {
        each_pair(frame.step, cuts, [&](int64_t rows, int64_t others, int64_t begin, int64_t other) {
            const int64_t at = begin + other;
            copy({rows, out.columns, vectors_from(frame, a, begin), vectors_from(frame, out, at)});
            copy({others, out.columns, vectors_from(frame, b, other), vectors_from(frame, out, at + rows)});
        });
    };
}

Program::Call split_rows_call(Operand x, const TwoCuts& cuts, Operand a, Operand b) {
    return [=](const Frame& frame) {
        each_pair(frame.step, cuts, [&](int64_t rows, int64_t others, int64_t begin, int64_t other) {
            const int64_t at = begin + other;
            copy({rows, x.columns, vectors_from(frame, x, at), vectors_from(frame, a, begin)});
            copy({others, x.columns, vectors_from(frame, x, at + rows), vectors_from(frame, b, other)});
        });
    };
}

Program::Call route_call(Operand logits, const RouterCall& router, Operand routes) {
    return [=](const Frame& frame) {
        route({frame.rows(logits), logits.columns, frame.at(logits), logits.stride, router.scoring,
               frame.weight<void>(router.bias.number), router.bias.dtype, router.groups, router.open_groups,
               router.group_score, router.normalised, router.scale, routes_at(frame, routes, router.chosen)});
    };
}

Program::Call experts_call(Operand x, Operand routes, const ExpertsCall& experts,
                           std::optional<Operand> residual, Operand out) {
    return [=](const Frame& frame) {
        Mixture job{};
        job.rows = frame.rows(x);
        job.experts = experts.experts;
        job.x = frame.at(x);
        job.x_stride = x.stride;
        job.routes = routes_at(frame, routes, experts.chosen);
        job.gate_up = experts.gate_up;
        job.gates = frame.weights + experts.first_gate_up;
        job.down = experts.down;
        job.downs = frame.weights + experts.first_down;
        job.activation = experts.activation;
        if (residual) {
            job.residual = frame.at(*residual);
            job.residual_stride = residual->stride;
        }
        job.out = frame.at(out);
        job.out_stride = out.stride;
        mix(job);
    };
}

}  // namespace ridgeline
