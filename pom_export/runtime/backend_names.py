"""Names of the runtimes, other than TensorRT, that a file can be compared on."""

from typing import Final

ONNXRUNTIME: Final = "onnxruntime"
OPENVINO: Final = "openvino"
WEB: Final = "onnxruntime-web"
NODE: Final = "onnxruntime-node"
BACKENDS: Final = (ONNXRUNTIME, OPENVINO, WEB, NODE)
