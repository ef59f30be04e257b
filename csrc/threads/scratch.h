#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace ridgeline {

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Memory that a thread keeps from call to call.
class Scratch {
public:
    uint8_t* reserve(int64_t bytes) {
        if (bytes > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, aligned(bytes))));
            if (!memory_) throw std::bad_alloc();
            size_ = aligned(bytes);
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(uint8_t* p) const { std::free(p); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    int64_t size_ = 0;
};

}  // namespace ridgeline
