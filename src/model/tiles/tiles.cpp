// Linear layers in f32 on tiles, for inference: see `bf16x3.h`.
// A function returns null, or a message to be freed with shipreid_free.

#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>

#include "../guarded.h"
#include "bf16x3.h"

namespace {

using at::Tensor;

shipreid::Operand rows_of(const Tensor &matrix) {
    return {matrix.const_data_ptr<float>(), matrix.size(0), matrix.size(1), 1};
}

// Row by row, f32 and on the host, as the kernel reads it.
Tensor plain(const Tensor &tensor, const char *what) {
    TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == at::kFloat, what, " is not f32 on the CPU");
    return tensor.contiguous();
}

} // namespace

extern "C" {

// weight [outputs, inputs] -> the same numbers as the kernel reads them.
char *shipreid_tiles_split(const Tensor *weight, Tensor **split) {
    return guarded([&] {
        TORCH_CHECK(weight->dim() == 2, "a weight has two axes, not ", weight->sizes());
        *split = new Tensor(shipreid::split_bf16x3(rows_of(plain(*weight, "the weight")), weight->size(1)));
    });
}

// x [rows, inputs], a split weight [outputs, inputs], bias [outputs] -> [rows, outputs], through the exact GELU if
// `has_gelu`, else plus `residual` [rows, outputs] if it is not null.
char *shipreid_tiles_linear(const Tensor *x, const Tensor *split, int64_t inputs, int64_t outputs, const Tensor *bias,
                            const Tensor *residual, bool has_gelu, Tensor **output) {
    return guarded([&] {
        TORCH_CHECK(x->dim() == 2 && x->size(1) == inputs && bias->dim() == 1 && bias->size(0) == outputs, "a layer with ",
                    inputs, " inputs and ", outputs, " outputs got ", x->sizes(), " and a bias of ", bias->sizes());
        const Tensor rows = plain(*x, "the input"), offsets = plain(*bias, "the bias");
        Tensor y = at::empty({rows.size(0), outputs}, rows.options());
        shipreid::Addends addends{offsets.const_data_ptr<float>()};
        Tensor added;
        if (residual != nullptr) {
            added = plain(*residual, "the residual");
            TORCH_CHECK(!has_gelu && added.sizes() == y.sizes(), "what is added to ", y.sizes(), " has ", added.sizes());
            addends.residual = added.const_data_ptr<float>();
        }
        shipreid::multiply_bf16x3(rows_of(rows), *split, outputs, inputs, addends, y.mutable_data_ptr<float>());
        if (has_gelu) {
            at::gelu_(y);
        }
        *output = new Tensor(std::move(y));
    });
}

}
