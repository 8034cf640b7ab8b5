"""Small ONNX models for tests: the nodes as text, constants as arrays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


def graph_model(nodes, inputs, outputs="y", opset=17, ir=8, **constants):
    """Return a checked model; ``inputs`` maps names to shapes, letters standing for sizes that are open."""
    given = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in inputs.items())
    wanted = ", ".join(f"float {name}" for name in outputs.split())
    model = onnx.parser.parse_model(f"""
        <ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        small ({given}) => ({wanted}) {{ {nodes} }}
    """)
    for value in model.graph.output:  # said to be numbers: the shapes are inferred
        value.type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    model = onnx.shape_inference.infer_shapes(model)
    model.graph.ClearField("value_info")
    onnx.checker.check_model(model)
    return model


def mlp(seed=0, dtype=np.float32):
    """Return 20 -> 30 -> 10 with ReLU between: a Gemm with its weight transposed, a MatMul with an addition."""
    rng = np.random.default_rng(seed)
    return graph_model(
        """h = Gemm <transB = 1> (x, w0, b0)
        a = Relu(h)
        p = MatMul(a, w1)
        y = Add(p, b1)""",
        {"x": ("n", 20)},
        w0=rng.normal(size=(30, 20)).astype(dtype),
        b0=rng.normal(size=30).astype(dtype),
        w1=rng.normal(size=(30, 10)).astype(dtype),
        b1=rng.normal(size=10).astype(dtype),
    )


def constants_of(model):
    """Return the initialisers of a model by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model, feed, *names):
    """Return values that onnxruntime computes, inner ones too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), feed)


def inputs(n=200, width=20, seed=1):
    """Return correlated inputs in float32, (n, width)."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) @ rng.normal(size=(width, width))).astype(np.float32)
