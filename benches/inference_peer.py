#!/usr/bin/env python3
"""Runs TransOSS in ONNX Runtime or OpenVINO on demand, as `shipreid bench forward` does, to be timed beside it.

`convert` writes a runtime's files from what `shipreid bench forward --write FOLDER` wrote. `run` prints a line after
the first embedding, then answers the lines "time CHIPS PASSES" and "embed CHIPS" of standard input. One thread.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy

# What quantize_dynamic is asked for beside int8 weights.
QUANTISED = {"int8": {}, "int8_reduced": {"reduce_range": True}}


def main():
    arguments = parse_arguments()
    if arguments.do == "convert":
        convert(arguments)
    else:
        run(arguments)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["convert", "run"])
    parser.add_argument("folder", type=Path, help="as `shipreid bench forward --write` has written it")
    parser.add_argument("runtime", choices=["onnxruntime", "openvino"])
    parser.add_argument("precision", choices=["f32", "bf16", *QUANTISED])
    parser.add_argument("form", help="of the graph, see inference_graph.py")
    parser.add_argument("--modality", default="optical", choices=["optical", "sar"])
    return parser.parse_args()


def converted(arguments):
    """The model as its runtime reads it fastest: weights beside the graph, to be mapped."""
    precision = arguments.precision if arguments.runtime == "onnxruntime" else "f32"
    ending = "onnx" if arguments.runtime == "onnxruntime" else "xml"
    return arguments.folder / f"{arguments.runtime}_{precision}_{arguments.form}.{ending}"


def convert(arguments):
    path = converted(arguments)
    if path.exists():
        return
    import onnx
    from inference_graph import transoss

    model = transoss(arguments.folder / "model", arguments.modality, arguments.form)
    onnx.checker.check_model(model)
    if arguments.runtime == "onnxruntime" and arguments.precision == "f32":
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
        return
    whole = path.with_suffix(".whole.onnx")
    onnx.save(model, whole)
    if arguments.runtime == "openvino":
        import openvino

        openvino.save_model(openvino.Core().read_model(whole), path, compress_to_fp16=False)
    else:
        from onnxruntime.quantization import quantize_dynamic

        # The products of its own domain's operators are f32, which it cannot infer.
        quantize_dynamic(whole, path, op_types_to_quantize=["MatMul", "Attention"], **QUANTISED[arguments.precision],
                         extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    whole.unlink()


def run(arguments):
    forward = {"onnxruntime": onnx_runtime, "openvino": openvino_runtime}[arguments.runtime](arguments)
    chips = read_safetensors(arguments.folder / "chips.safetensors")

    def batch(count):
        rows = numpy.arange(count) % len(chips["pixels"])
        return {name: numpy.ascontiguousarray(values[rows]) for name, values in chips.items()}

    forward(batch(1))
    answer({"cpu_seconds": time.process_time()})
    for line in sys.stdin:
        verb, *numbers = line.split()
        answer({"time": timed, "embed": embedded}[verb](forward, batch(int(numbers[0])), *map(int, numbers[1:])))


def timed(forward, batch, passes):
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(passes):
        forward(batch)
    measured = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return {"images": passes * len(batch["pixels"]), **measured}


def embedded(forward, batch):
    features = forward(batch)
    return {"embeddings": (features / numpy.linalg.norm(features, axis=1, keepdims=True)).tolist()}


def onnx_runtime(arguments):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(converted(arguments)), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["features"], batch)[0]


def openvino_runtime(arguments):
    import openvino
    from openvino import properties

    precision = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16}[arguments.precision]
    hints = {
        properties.inference_num_threads: 1,
        properties.num_streams: 1,
        properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
        properties.hint.enable_cpu_pinning: False,
        properties.hint.inference_precision: precision,
    }
    model = openvino.Core().compile_model(converted(arguments), "CPU", hints)
    if model.get_property(properties.hint.inference_precision) != precision:
        sys.exit(f"OpenVINO computes in another precision than {arguments.precision} on this processor")
    request = model.create_infer_request()
    return lambda batch: request.infer(batch, share_inputs=True, share_outputs=True)["features"]


def read_safetensors(path):
    """f32 tensors, without another package to import before the first embedding."""
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, tensor in json.loads(data[8:header_end]).items():
        if name != "__metadata__":
            start, end = (header_end + offset for offset in tensor["data_offsets"])
            tensors[name] = numpy.frombuffer(data[start:end], numpy.float32).reshape(tensor["shape"])
    return tensors


def answer(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
