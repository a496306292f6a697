// What training does faster on the CPU than one operation after the other: linear layers on tiles, attention without
// copies, and optimizers that read and write every number once. Autograd sees each as one function.

#include <optional>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../guarded.h"
#include "../tiles/bf16x3.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Row by row, f32 and on the host, as the kernels read it.
void check(const Tensor &tensor, const char *what) {
    TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == at::kFloat, what, " is not f32 on the CPU");
}

shipreid::Operand rows_of(const Tensor &matrix) {
    return {matrix.const_data_ptr<float>(), matrix.size(0), matrix.size(1), 1};
}

shipreid::Operand columns_of(const Tensor &matrix) {
    return {matrix.const_data_ptr<float>(), matrix.size(1), 1, matrix.size(1)};
}

// x [.., inputs], weight [outputs, inputs], bias [outputs] -> [.., outputs].
struct Linear : torch::autograd::Function<Linear> {
    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &weight, const Tensor &bias) {
        check(x, "the input"), check(weight, "the weight"), check(bias, "the bias");
        const auto outputs = weight.size(0), inputs = weight.size(1);
        TORCH_CHECK(x.dim() > 0 && x.size(-1) == inputs && bias.dim() == 1 && bias.size(0) == outputs, "a layer with ", inputs,
                    " inputs and ", outputs, " outputs got ", x.sizes(), " and a bias of ", bias.sizes());
        const Tensor rows = x.reshape({-1, inputs}).contiguous(), by_row = weight.contiguous();
        context->save_for_backward({rows, by_row});
        auto shape = x.sizes().vec();
        shape.back() = outputs;
        Tensor y = at::empty(shape, x.options());
        const Tensor offsets = bias.contiguous();
        shipreid::multiply_bf16x3(rows_of(rows), rows_of(by_row), inputs, offsets.const_data_ptr<float>(),
                                  y.mutable_data_ptr<float>());
        return y;
    }

    static variable_list backward(AutogradContext *context, variable_list of_output) {
        const auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &weight = saved[1];
        const auto outputs = weight.size(0), inputs = weight.size(1);
        const Tensor of_y = of_output[0].reshape({-1, outputs}).contiguous();
        Tensor of_x, of_weight, of_bias;
        if (context->needs_input_grad(0)) {
            auto shape = of_output[0].sizes().vec();
            shape.back() = inputs;
            of_x = at::empty(shape, x.options());
            shipreid::multiply_bf16x3(rows_of(of_y), columns_of(weight), outputs, nullptr, of_x.mutable_data_ptr<float>());
        }
        if (context->needs_input_grad(1)) {
            of_weight = at::empty({outputs, inputs}, weight.options());
            shipreid::multiply_bf16x3(columns_of(of_y), columns_of(x), x.size(0), nullptr,
                                      of_weight.mutable_data_ptr<float>());
        }
        if (context->needs_input_grad(2)) {
            of_bias = of_y.sum(0);
        }
        return {of_x, of_weight, of_bias};
    }
};

// qkv [B, N, 3 D] -> [B, N, D]: softmax(q k^T / sqrt(h)) v in each of `heads`. Autograd would assemble the gradient of
// qkv from three of its size, each zero but for a third.
struct Attention : torch::autograd::Function<Attention> {
    // [B, H, N, h] of [B, N, 3 D].
    static Tensor part(const Tensor &qkv, int64_t number, int64_t heads) {
        const auto width = qkv.size(2) / 3;
        return qkv.narrow(2, number * width, width).unflatten(2, {heads, width / heads}).transpose(1, 2);
    }

    static Tensor forward(AutogradContext *context, const Tensor &given, int64_t heads) {
        const Tensor qkv = given.contiguous();
        TORCH_CHECK(qkv.is_cpu() && qkv.dim() == 3 && heads > 0 && qkv.size(2) % (3 * heads) == 0, "attention with ", heads,
                    " heads got ", qkv.sizes());
        auto [attended, logarithms] = at::_scaled_dot_product_flash_attention_for_cpu(
            part(qkv, 0, heads), part(qkv, 1, heads), part(qkv, 2, heads));
        context->saved_data["heads"] = heads;
        context->save_for_backward({qkv, attended, logarithms});
        return attended.transpose(1, 2).reshape({qkv.size(0), qkv.size(1), qkv.size(2) / 3});
    }

    static variable_list backward(AutogradContext *context, variable_list of_output) {
        const auto saved = context->get_saved_variables();
        const Tensor &qkv = saved[0], &attended = saved[1], &logarithms = saved[2];
        const auto heads = context->saved_data["heads"].toInt();
        const Tensor of_attended =
            of_output[0].unflatten(2, {heads, of_output[0].size(2) / heads}).transpose(1, 2);
        const auto [of_q, of_k, of_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
            of_attended, part(qkv, 0, heads), part(qkv, 1, heads), part(qkv, 2, heads), attended, logarithms, 0.0, false);
        const Tensor of_qkv = at::empty_like(qkv);
        part(of_qkv, 0, heads).copy_(of_q);
        part(of_qkv, 1, heads).copy_(of_k);
        part(of_qkv, 2, heads).copy_(of_v);
        return {of_qkv, Tensor()};
    }
};

std::vector<Tensor> list(const Tensor *const *tensors, size_t count) {
    std::vector<Tensor> listed;
    listed.reserve(count);
    for (size_t number = 0; number < count; number++) {
        listed.push_back(*tensors[number]);
    }
    return listed;
}

} // namespace

extern "C" {

char *shipreid_training_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, Tensor **y) {
    return guarded([&] { *y = new Tensor(Linear::apply(*x, *weight, *bias)); });
}

char *shipreid_training_attention(const Tensor *qkv, int64_t heads, Tensor **attended) {
    return guarded([&] { *attended = new Tensor(Attention::apply(*qkv, heads)); });
}

// buf = momentum buf + g + decay p, p -= rate buf, for `count` tensors each.
char *shipreid_training_sgd(const Tensor *const *tensors, const Tensor *const *gradients, const Tensor *const *momenta,
                            size_t count, double rate, double momentum, double decay) {
    return guarded([&] {
        const auto parameters = list(tensors, count), given = list(gradients, count), buffers = list(momenta, count);
        at::_fused_sgd_(parameters, given, buffers, decay, momentum, rate, 0.0, false, false, false);
    });
}

// One step of AdamW, the `number`th from 1 on.
char *shipreid_training_adamw(const Tensor *const *tensors, const Tensor *const *gradients, const Tensor *const *first,
                              const Tensor *const *second, size_t count, double rate, double beta1, double beta2,
                              double epsilon, double decay, int64_t number) {
    return guarded([&] {
        const std::vector<Tensor> steps(count, at::scalar_tensor(number, at::kFloat));
        const auto parameters = list(tensors, count), given = list(gradients, count);
        const auto means = list(first, count), squares = list(second, count);
        at::_fused_adamw_(parameters, given, means, squares, {}, steps, rate, beta1, beta2, decay, epsilon, false, false);
    });
}

}
