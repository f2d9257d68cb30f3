"""A small repository of torch's hub: a folder with code that builds a vision transformer, and says that it ran."""

from __future__ import annotations

from pathlib import Path

SIZE = 28
MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))

class PatchEmbed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.patch_size, self.proj = (14, 14), nn.Conv2d(3, dim, 14, 14)

    def forward(self, x):
        assert x.shape[-1] == 28, f"made for 28 pixels, got {x.shape[-1]}"
        return self.proj(x).flatten(2).transpose(1, 2)

class Vit(nn.Module):  # the parts and the dictionary of DINOv2's own code
    def __init__(self, dim=16, depth=2, registers=4):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.randn(1, registers, dim)) if registers else None
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward_features(self, images):
        prefix = [self.cls_token] + ([self.register_tokens] if self.register_tokens is not None else [])
        x = torch.cat([*(p.expand(len(images), -1, -1) for p in prefix), self.patch_embed(images)], 1)
        for block in self.blocks:
            x = block(x)
        return {"x_norm_clstoken": self.norm(x)[:, 0]}

    def forward(self, images):
        return self.forward_features(images)["x_norm_clstoken"]
"""
HUBCONF = """
dependencies = ["torch"]
from pathlib import Path
import torch
from tiny_hub_vit import Vit

Path(__file__).with_name("ran").touch()

def tiny(pretrained=True, **options):
    model = Vit(**options)
    if pretrained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
    return model

def fixed():
    return Vit(registers=0)

def not_a_module(pretrained=True):
    return 3

def forgetful(pretrained=True):
    import a_package_nobody_has

def far_away(pretrained=True):
    raise OSError("no route to host")
"""


def write_repository(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "tiny_hub_vit.py").write_text(MODEL)
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def has_run(repository: Path) -> bool:
    """Whether its code has run since this was last asked."""
    ran = (repository / "ran").exists()
    (repository / "ran").unlink(missing_ok=True)
    return ran
