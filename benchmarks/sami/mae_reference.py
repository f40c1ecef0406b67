"""MAE's model from an external checkout, as the reference.

It is not part of this project, for its licence; MAE_REPO names the folder.
"""

import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from efficientsam_pl.models.config import SamiConfig

HOW_TO_GET_IT = (
    "sami.student_step needs MAE's code: git clone https://github.com/facebookresearch/mae, "
    "then MAE_REPO=that folder"
)


def mae_folder() -> Path | None:
    """Folder of MAE's code, from MAE_REPO; None if it is not set.

    Raises:
        FileNotFoundError: The folder does not contain the code.
    """
    named = os.environ.get("MAE_REPO")
    if not named:
        return None
    folder = Path(named)
    if not (folder / "models_mae.py").is_file():
        raise FileNotFoundError(f"MAE_REPO={folder} holds no models_mae.py. {HOW_TO_GET_IT}")
    return folder


def mae_model(folder: Path, config: SamiConfig) -> nn.Module:
    """Build MAE's model, randomly initialized, with an encoder of the student's size.

    Args:
        folder: Contains models_mae.py and util/.
        config: The student's; MAE's decoder also has its depth, width and heads.
    """
    student = config.student
    model: nn.Module = _models_mae(folder).MaskedAutoencoderViT(
        img_size=student.image_size,
        patch_size=student.patch_size,
        embed_dim=student.width,
        depth=student.depth,
        num_heads=student.heads,
        decoder_embed_dim=config.decoder_width,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )
    return model


def _models_mae(folder: Path) -> ModuleType:
    """Load the module, without what timm and numpy have removed since 2021."""
    positions = _module("util.pos_embed", folder / "util/pos_embed.py", ("np.float)", "float)"))
    package: Any = ModuleType("util")
    package.pos_embed = positions
    borrowed = {"util": package, "util.pos_embed": positions}
    before = {name: sys.modules.get(name) for name in borrowed}
    sys.modules.update(borrowed)
    try:
        return _module("models_mae", folder / "models_mae.py", (" qk_scale=None,", ""))
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _module(name: str, path: Path, gone: tuple[str, str]) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    exec(compile(path.read_text().replace(*gone), str(path), "exec"), module.__dict__)
    return module
