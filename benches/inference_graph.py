"""TransOSS as an ONNX graph, from a model folder of `shipreid`, for one modality.

The same function as src/model/transoss.rs, in operators that the runtimes have kernels for. Constants that meet each
other are added up beforehand (positions and modality embedding), and only the class token reaches the last LayerNorm.
Shapes: B batch, P patches, N = P + 2 tokens, D embedding, H heads.
"""

import math
import tomllib
from pathlib import Path

import numpy
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

LAYER_NORM_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
MODALITIES = {"optical": (0, "patch_embed"), "sar": (1, "patch_embed_SAR")}

# How attention, residuals and activations are written down:
# plain: standard operators, which optimisers fuse; opset23: its Attention; contrib: fused operators of ONNX Runtime.
FORMS = ("plain", "opset23", "contrib")


def transoss(folder, modality, form):
    """The graph: pixels [B, 3, height, width] and size_tokens [B, 3] to features [B, D], not of unit length."""
    return Graph(Path(folder), modality, form).model()


class Graph:
    def __init__(self, folder, modality, form):
        description = tomllib.loads((folder / "model.toml").read_text())
        self.architecture = description["architecture"]
        self.is_after_neck = description["feature_point"] == "after_neck"
        self.weights = load_file(folder / "model.safetensors")
        self.modality, self.form = modality, form
        self.nodes, self.initializers = [], []

    def model(self):
        """An `onnx.ModelProto`."""
        size = self.architecture["image"]
        inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, size["height"], size["width"]]),
                  helper.make_tensor_value_info("size_tokens", TensorProto.FLOAT, ["B", 3])]
        feature = self.features(self.blocks(self.tokens()))
        self.op("Identity", [feature], output="features")
        outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", self.dimension])]
        graph = helper.make_graph(self.nodes, "transoss", inputs, outputs, self.initializers)
        opset = 23 if self.form == "opset23" else 20
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    # Layers.

    def tokens(self):
        """[B, N, D]: class, patches, size."""
        index, convolution = MODALITIES[self.modality]
        weight = self.weights[f"base.{convolution}.proj.weight"]
        places = self.weights["base.pos_embed"]
        if self.architecture["modality_embedding"]:
            factor = numpy.float32(self.architecture["mie_coefficient"])
            places = places + factor * self.weights["base.mie_embed"][index]
        grid = self.op("Conv", ["pixels", self.constant(weight), self.named(f"base.{convolution}.proj.bias")],
                       kernel_shape=list(weight.shape[2:]), strides=[self.architecture["stride"]] * 2)
        rows = self.op("Reshape", [grid, self.numbers(0, self.dimension, -1)])
        patches = self.op("Add", [self.op("Transpose", [rows], perm=[0, 2, 1]), self.constant(places[:, 1:])])
        batch = self.op("Shape", ["pixels"], start=0, end=1)
        shape = self.op("Concat", [batch, self.numbers(1, self.dimension)], axis=0)
        first = self.op("Expand", [self.constant(self.weights["base.cls_token"] + places[:, :1]), shape])
        parts = [first, patches]
        if self.architecture["size_token"]:
            size = self.linear("size_tokens", "base.wh_embed.linear_layer")
            parts.append(self.op("Unsqueeze", [size, self.numbers(1)]))
        return self.op("Concat", parts, axis=1)

    def blocks(self, x):
        """[B, N, D] -> [B, N, D], without the last LayerNorm."""
        names = [f"base.blocks.{number}" for number in range(self.architecture["depth"])]
        if self.form == "contrib":
            return self.fused_blocks(x, names)
        for name in names:
            x = self.block(x, name)
        return x

    def fused_blocks(self, x, names):
        """[B, N, D] -> [B, N, D]; the LayerNorm after an addition makes the addition as well."""
        normed = self.layer_norm(x, f"{names[0]}.norm1")
        for name, after in zip(names, [*names[1:], None]):
            x, normed = self.add_and_norm(self.fused_attention(normed, name), x, f"{name}.attn.proj", f"{name}.norm2")
            hidden = self.op("MatMul", [normed, self.transposed(f"{name}.mlp.fc1")])
            hidden = self.contrib("BiasGelu", [hidden, self.named(f"{name}.mlp.fc1.bias")])
            branch = self.op("MatMul", [hidden, self.transposed(f"{name}.mlp.fc2")])
            if after:
                x, normed = self.add_and_norm(branch, x, f"{name}.mlp.fc2", f"{after}.norm1")
            else:
                x = self.op("Add", [x, self.op("Add", [branch, self.named(f"{name}.mlp.fc2.bias")])])
        return x

    def block(self, x, name):
        """[B, N, D] -> [B, N, D]"""
        x = self.op("Add", [x, self.attention(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn")])
        hidden = self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return self.op("Add", [x, self.linear(self.op("Gelu", [hidden]), f"{name}.mlp.fc2")])

    def attention(self, x, name):
        """[B, N, D] -> [B, N, D]"""
        qkv = self.linear(x, f"{name}.qkv")
        split = self.op("Reshape", [qkv, self.numbers(0, 0, 3, self.heads, self.dimension // self.heads)])
        split = self.op("Transpose", [split], perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", [split, self.number(part)], axis=0) for part in range(3))
        scale = 1 / math.sqrt(self.dimension // self.heads)
        if self.form == "opset23":
            attended = self.op("Attention", [q, k, v], scale=scale)
        else:
            scaled = self.op("Mul", [q, self.constant(numpy.float32(scale))])
            scores = self.op("MatMul", [scaled, self.op("Transpose", [k], perm=[0, 1, 3, 2])])
            attended = self.op("MatMul", [self.op("Softmax", [scores], axis=-1), v])
        joined = self.op("Transpose", [attended], perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", [joined, self.numbers(0, 0, self.dimension)]), f"{name}.proj")

    def fused_attention(self, normed, name):
        """[B, N, D] -> [B, N, D], without the bias of its last layer."""
        qkv = [self.transposed(f"{name}.attn.qkv"), self.named(f"{name}.attn.qkv.bias")]
        attended = self.contrib("Attention", [normed, *qkv], num_heads=self.heads)
        return self.op("MatMul", [attended, self.transposed(f"{name}.attn.proj")])

    def add_and_norm(self, branch, x, layer, norm):
        """The sum of both with the layer's bias, and the sum after LayerNorm."""
        output, total = f"norm_{len(self.nodes)}", f"sum_{len(self.nodes)}"
        inputs = [branch, x, *map(self.named, (f"{norm}.weight", f"{norm}.bias", f"{layer}.bias"))]
        self.nodes.append(helper.make_node("SkipLayerNormalization", inputs, [output, "", "", total],
                                           domain="com.microsoft", epsilon=LAYER_NORM_EPS))
        return total, output

    def features(self, x):
        """[B, N, D] -> [B, D]"""
        feature = self.layer_norm(self.op("Gather", [x, self.number(0)], axis=1), "base.norm")
        if not self.is_after_neck:
            return feature
        parts = ("weight", "bias", "running_mean", "running_var")
        return self.op("BatchNormalization", [feature, *(self.named(f"bottleneck.{part}") for part in parts)],
                       epsilon=BATCH_NORM_EPS)

    def layer_norm(self, x, name):
        return self.op("LayerNormalization", [x, self.named(f"{name}.weight"), self.named(f"{name}.bias")],
                       axis=-1, epsilon=LAYER_NORM_EPS)

    def linear(self, x, name):
        return self.op("Add", [self.op("MatMul", [x, self.transposed(name)]), self.named(f"{name}.bias")])

    # Parts of a graph.

    @property
    def dimension(self):
        return self.architecture["embed_dim"]

    @property
    def heads(self):
        return self.architecture["heads"]

    def op(self, kind, inputs, output=None, domain="", **attributes):
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, name=f"{output}_node", **attributes))
        return output

    def contrib(self, kind, inputs, **attributes):
        return self.op(kind, inputs, domain="com.microsoft", **attributes)

    def named(self, name):
        return self.constant(self.weights[name], name)

    def transposed(self, layer):
        """[inputs, outputs]"""
        return self.constant(self.weights[f"{layer}.weight"].T, f"{layer}.weight.T")

    def numbers(self, *values):
        return self.constant(numpy.array(values, dtype=numpy.int64))

    def number(self, value):
        return self.constant(numpy.array(value, dtype=numpy.int64))

    def constant(self, values, name=None):
        name = name or f"constant_{len(self.initializers)}"
        if name not in (known.name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(numpy.asarray(values, order="C"), name))
        return name
