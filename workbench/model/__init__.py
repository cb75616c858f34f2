"""A small chat model that the project trains itself, ships, compresses and serves.

`corpus` and `tasks` make the data, `batches` packs it, `train` is the recipe, `card` judges the
result and `ngram` is the baseline that the result has to beat. Importing this package is light:
torch is loaded by the modules that need it.
"""

from __future__ import annotations

from pathlib import Path


def shipped_checkpoint() -> Path:
    """Say where the trained model lies that comes with the project.

    Returns: the folder with weights, tokenizer and `card.json`, as transformers and vLLM load it.
    Raises:  FileNotFoundError: the installation carries no checkpoint.
    """
    folder = Path(__file__).parent / "checkpoint"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no model in {folder}: reinstall the project, or train one with "
            "workbench.model.train.train(folder)"
        )
    return folder
