#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "linear/linear.h"
#include "program/calls.h"
#include "simd/half.h"
#include "threads/pool.h"
#include "threads/scratch.h"

// Multi-head latent attention, expanded: every head's keys and values are multiplied out of the latents of
// all tokens, and attended to like any others.
namespace ridgeline {
namespace {

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

/// Pairs of neighbours become halves, in n vectors of `dim` elements a row.
void take_apart(float* x, int64_t rows, int64_t row_stride, int64_t n, int64_t stride, int64_t dim) {
    parallel_for(rows, [&](int64_t begin, int64_t end) {
        float apart[kMostDim];
        for (int64_t row = begin; row < end; ++row)
            for (int64_t i = 0; i < n; ++i) {
                float* at = x + row * row_stride + i * stride;
                for (int64_t k = 0; k < dim / 2; ++k) {
                    apart[k] = at[2 * k];
                    apart[dim / 2 + k] = at[2 * k + 1];
                }
                std::copy_n(apart, dim, at);
            }
    });
}

/// f(the sequence's number, its token, the row of the call or of all tokens) for the new tokens or all.
template <class Function>
void each_token(const Sequences& sequences, bool all, const Function& f) {
    int64_t row = 0;
    for (int64_t s = 0; s < sequences.count; ++s)
        for (int64_t token = all ? 0 : sequences.past[s]; token < sequences.keys(s); ++token)
            f(s, token, row++);
}

/// Where a token's latent lies in a cache of blocks.
uint8_t* slot(const Sequences& sequences, int64_t sequence, int64_t token, const LatentCache& cache,
              uint8_t* memory) {
    const int64_t block = sequences.table(sequence)[token / cache.block];
    return memory + (block * cache.block + token % cache.block) * cache.columns * bytes_of(cache.dtype);
}

/// Stores the rows of `from`, and brings the latents of all tokens to `to`, float32.
void exchange(const Sequences& sequences, const LatentCache& cache, uint8_t* memory, const float* from,
              int64_t stride, float* to) {
    const int64_t n = cache.columns;
    const Vectors cached{nullptr, n, n, cache.dtype};
    const auto move = [&](const Vectors& a, const Vectors& b) { copy({1, n, a, b}); };
    each_token(sequences, false, [&](int64_t s, int64_t token, int64_t row) {
        Vectors there = cached;
        there.data = slot(sequences, s, token, cache, memory);
        move({const_cast<float*>(from) + row * stride, n, n, Dtype::fp32}, there);
    });
    each_token(sequences, true, [&](int64_t s, int64_t token, int64_t row) {
        Vectors there = cached;
        there.data = slot(sequences, s, token, cache, memory);
        move(there, {to + row * n, n, n, Dtype::fp32});
    });
}

void turn(const Frame& frame, const LatentHeads& heads, const LatentCall& call, float* q, const Operand& at_q,
          float* kv, const Operand& at_kv) {
    if (call.rotation < 0) return;
    const AngleTable& angles = frame.step.angles[call.rotation];
    const int64_t rows = frame.rows(at_q), key = heads.content + heads.rotated, dim = heads.rotated;
    float *turning = q + heads.content, *shared = kv + heads.rank;
    if (call.interleaved) {
        take_apart(turning, rows, at_q.stride, heads.count, key, dim);
        take_apart(shared, rows, at_kv.stride, 1, 0, dim);
    }
    const Vectors queries{turning, at_q.stride, key, Dtype::fp32},
        keys{shared, at_kv.stride, dim, Dtype::fp32};
    rotate({rows, heads.count, dim, queries, angles.cosines, angles.sines, angles.count, dim, angles.rows,
            queries});
    rotate({rows, 1, dim, keys, angles.cosines, angles.sines, angles.count, dim, angles.rows, keys});
}

}  // namespace

Program::Call attend_latent_call(Operand q, Operand kv, const LatentCall& call, Operand out) {
    return [=](const Frame& frame) {
        thread_local Scratch known_memory, made_memory, key_memory, value_memory;
        const LatentHeads& heads = call.heads;
        const int64_t rows = frame.rows(q), stored = heads.rank + heads.rotated;
        const int64_t key = heads.content + heads.rotated, each = heads.content + heads.value;
        Sequences sequences = frame.step.cuts[call.cut];
        float *queries = frame.at(q), *latents = frame.at(kv);
        turn(frame, heads, call, queries, q, latents, kv);
        Norm normed{};
        normed.kind = call.norm;
        normed.rows = rows;
        normed.heads = 1;
        normed.dim = heads.rank;
        normed.x = normed.out = {latents, kv.stride, heads.rank, Dtype::fp32};
        normed.weight = frame.weight<void>(call.norm_weight.number);
        normed.weight_dtype = call.norm_weight.dtype;
        normed.eps = call.eps;
        norm(normed);

        int64_t keys = 0;
        for (int64_t s = 0; s < sequences.count; ++s) keys += sequences.keys(s);
        const float* known = latents;
        int64_t known_stride = kv.stride;
        if (call.cache >= 0) {
            float* all = reinterpret_cast<float*>(known_memory.reserve(keys * stored * 4));
            exchange(sequences, call.stored, reinterpret_cast<uint8_t*>(frame.caches[call.cache]), latents,
                     kv.stride, all);
            known = all;
            known_stride = stored;
        }

        Job product{};
        product.layout = call.up;
        product.weight = frame.weight<uint8_t>(call.up_number);
        product.x = {known, known_stride, Dtype::fp32};
        float* made = reinterpret_cast<float*>(made_memory.reserve(keys * heads.count * each * 4));
        product.out = made;
        product.out_stride = heads.count * each;
        product.rows = keys;
        linear(product);

        const Dtype dtype = call.format == KvFormat::fp32 ? Dtype::fp32 : Dtype::bf16;
        const int64_t size = bytes_of(dtype);
        uint8_t* key_rows = key_memory.reserve(keys * heads.count * key * size);
        uint8_t* value_rows = value_memory.reserve(keys * heads.count * heads.value * size);
        const int64_t vectors = keys * heads.count;
        copy({vectors, heads.content, {made, each, each, Dtype::fp32}, {key_rows, key, key, dtype}});
        copy({vectors,
              heads.value,
              {made + heads.content, each, each, Dtype::fp32},
              {value_rows, heads.value, heads.value, dtype}});
        for (int64_t head = 0; head < heads.count; ++head)
            copy({keys,
                  heads.rotated,
                  {const_cast<float*>(known) + heads.rank, known_stride, heads.rotated, Dtype::fp32},
                  {key_rows + (head * key + heads.content) * size, heads.count * key, key, dtype}});

        Attention job{};
        job.heads = heads.count;
        sequences.tables = nullptr;
        job.sequences = sequences;
        job.queries = {queries, Dtype::fp32, kPacked, q.stride, key};
        job.source.layout = {call.format, heads.count, key, heads.value};
        job.source.plain = {{key_rows, dtype, kPacked, heads.count * key, key},
                            {value_rows, dtype, kPacked, heads.count * heads.value, heads.value},
                            0};
        job.mask = call.mask;
        job.score = call.score;
        job.out = {frame.at(out), Dtype::fp32, kPacked, out.stride, heads.value};
        attention(job);
    };
}

}  // namespace ridgeline
