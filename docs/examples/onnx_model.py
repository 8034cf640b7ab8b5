"""A model in an ONNX file: nine weights of ten become zero, from file to file; onnxruntime runs both."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from sisopt.adapters.onnx import sparsify_onnx

digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), digits.target
training, test = slice(0, 1300), slice(1300, None)

# Any file will do; this one is made here, of a network that scikit-learn trains.
trained = MLPClassifier((128, 64), max_iter=150, tol=1e-3, random_state=0).fit(images[training], labels[training])
model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    digits (float[n, 64] images) => (float[n, 10] likelihoods) {
        z0 = Gemm(images, w0, b0)  y0 = Relu(z0)
        z1 = Gemm(y0, w1, b1)      y1 = Relu(z1)
        z2 = Gemm(y1, w2, b2)      likelihoods = Softmax(z2)
    }
""")
for letter, arrays in (("w", trained.coefs_), ("b", trained.intercepts_)):
    for i, array in enumerate(arrays):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), f"{letter}{i}"))

folder = Path(tempfile.mkdtemp())
onnx.save_model(model, folder / "digits.onnx")


def accuracy(path):
    session = onnxruntime.InferenceSession(path)
    (likelihoods,) = session.run(None, {"images": images[test]})
    return float((likelihoods.argmax(1) == labels[test]).mean())


batches = [{"images": part} for part in np.array_split(images[training], 4)]  # calibration takes images, no labels
path, report = sparsify_onnx(folder / "digits.onnx", batches, sparsity=0.9, output=folder / "sparse.onnx")

dense, sparse = accuracy(folder / "digits.onnx"), accuracy(path)
print(report)
print(f"accuracy: dense {dense:.1%}, with {report.sparsity:.0%} zeros {sparse:.1%}")
