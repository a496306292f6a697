// Matrix products in f32 on tiles (AMX), which multiply bf16: every number is split into three of bf16, high, middle and
// low, which together hold its 24 bits, and the six products that matter are summed in f32. What is left out is below
// 2^-27 of a product, so the sums are as exact as those of an f32 multiplication.

#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace shipreid {

// Rows of numbers to be multiplied along `depth`: element (row, k) is at data[row * row_stride + k * depth_stride], one
// of the strides being 1.
struct Operand {
    const float *data;
    int64_t rows;
    int64_t row_stride;
    int64_t depth_stride;
};

// What is added to a product in the pass that writes it; either may be missing.
struct Addends {
    // [right.rows]
    const float *bias = nullptr;
    // As the output.
    const float *residual = nullptr;
};

// out [left.rows, right.rows], row by row = left right^T, plus `bias` [right.rows] if there is one. The result does not
// depend on the number of threads. The caller knows that the processor has AMX and the process may use it.
void multiply_bf16x3(const Operand &left, const Operand &right, int64_t depth, const float *bias, float *out);

// The right operand of many products, split once, in the order in which tiles are loaded: bf16 in one dimension, 6 bytes
// for each number and for those that fill up the last tiles.
at::Tensor split_bf16x3(const Operand &right, int64_t depth);

// The same with a right operand of `right_rows` that was split before.
void multiply_bf16x3(const Operand &left, const at::Tensor &split, int64_t right_rows, int64_t depth, const Addends &addends,
                     float *out);

} // namespace shipreid
