"""The files that MLflow's own loaders need in a version: MLmodel, its requirements, an input example.

MLflow writes a time and a random id into MLmodel. Here both are constants, so that content alone decides the digest.
"""

from __future__ import annotations

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from azneobert.data.tokenizer import MASK
from azneobert.yaml_files import yaml_text

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_TEXTS = '[{"type": "string", "required": true}]'  # a column of strings goes in, and one comes out
_EXAMPLES = {
    "fill-mask": f"Bakı Azərbaycanın {MASK} şəhəridir.",
    "text-classification": "Komanda dünən oyunu qazandı.",
    "token-classification": "Nizami Gəncəvi Gəncədə anadan olub.",
}
_PIPELINES = {
    "fill-mask": "FillMaskPipeline",
    "text-classification": "TextClassificationPipeline",
    "token-classification": "TokenClassificationPipeline",
}


def write_mlmodel(folder: Path, task: str = "fill-mask", architecture: str = "EuroBertForMaskedLM") -> None:
    """Add the files by which `mlflow.transformers` and `mlflow.pyfunc` load a folder as a pipeline for `task`.

    `architecture` is the class of transformers that its config.json names.
    """
    python = platform.python_version()
    requirements = [
        f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "tokenizers", "torch", "transformers")
    ]
    example = "input_example.json"
    content = {
        "flavors": {
            "python_function": {
                "env": {"virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.transformers",
                "python_version": python,
            },
            "transformers": {
                "code": None,
                "components": ["tokenizer"],
                "instance_type": _PIPELINES[task],
                "model_binary": ".",
                "pipeline_model_type": architecture,
                "source_model_name": "azneobert",
                "task": task,
                "tokenizer_type": "PreTrainedTokenizerFast",
                "torch_dtype": "torch.float32",
                "transformers_version": version("transformers"),
            },
        },
        "mlflow_version": version("mlflow"),
        "model_uuid": "0" * 32,
        "saved_input_example_info": {"artifact_path": example, "type": "json_object"},
        "signature": {"inputs": _TEXTS, "outputs": _TEXTS, "params": None},
        "utc_time_created": "1970-01-01 00:00:00.000000",
    }
    (folder / "MLmodel").write_text(yaml_text(content), encoding="utf-8")
    (folder / example).write_text(json.dumps([_EXAMPLES[task]], ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml_text(environment), encoding="utf-8")
    components = folder / "components" / "tokenizer"  # where MLflow looks for it, whatever stands beside the model
    components.mkdir(parents=True)
    for name in _TOKENIZER:
        shutil.copyfile(folder / name, components / name)
