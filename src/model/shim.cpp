// What libtorch can do and tch does not expose: on the CPU oneDNN's linear layers, which lie below autograd; on CUDA
// convolutions in f32 proper.
// A function returns null, or a message to be freed with shipreid_free.

#include <cstdlib>
#include <cstring>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "guarded.h"

namespace {

struct Quiet : c10::WarningHandler {
    void process(const c10::Warning &) override {}
};

using Reorder = at::Tensor(const at::Tensor &, std::optional<c10::SymInt>);
using Linear = at::Tensor(const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &, std::string_view,
                          c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char *name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

} // namespace

extern "C" {

void shipreid_free(char *message) { free(message); }

// cuDNN's convolutions round f32 to TF32 unless they are told not to; cuBLAS does not by default.
char *shipreid_disable_tf32() {
    return guarded([] {
        // libtorch warns that these setters are old. The newer ones leave what older code reads as it was.
        Quiet handler;
        c10::WarningUtils::WarningHandlerGuard quiet(&handler);
        at::globalContext().setAllowTF32CuDNN(false);
        at::globalContext().setAllowTF32CuBLAS(false);
    });
}

// weight [outputs, inputs] -> the same numbers in the order that oneDNN likes best for `rows` rows of input.
char *shipreid_onednn_pack(const at::Tensor *weight, int64_t rows, at::Tensor **packed) {
    return guarded([&] {
        static const auto reorder = find<Reorder>("mkldnn::_reorder_linear_weight");
        *packed = new at::Tensor(reorder.call(*weight, c10::SymInt(rows)));
    });
}

// input [rows, inputs], packed weight, bias [outputs] -> [rows, outputs], through `activation` ("none" or "gelu").
char *shipreid_onednn_linear(const at::Tensor *input, const at::Tensor *packed, const at::Tensor *bias,
                             const char *activation, at::Tensor **output) {
    return guarded([&] {
        static const auto linear = find<Linear>("mkldnn::_linear_pointwise");
        // Of the two forms of GELU, the exact one.
        auto form = std::strcmp(activation, "gelu") == 0 ? std::optional<std::string_view>("none") : std::nullopt;
        *output = new at::Tensor(linear.call(*input, *packed, *bias, activation, c10::List<std::optional<at::Scalar>>(), form));
    });
}

}
