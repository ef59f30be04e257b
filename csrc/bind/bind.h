#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

// Tensors come as addresses; ridgeline/kernels checks dtypes, shapes, strides and devices. The module needs
// neither PyTorch nor NumPy.
namespace ridgeline {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void bind_attention(nanobind::module_& m);
void bind_experts(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_rows(nanobind::module_& m);
void bind_sample(nanobind::module_& m);

}  // namespace ridgeline
