"""Draw which values share a mean and a variance in each normalization.

Each panel is an array of examples, channels and positions; coloured values are one group.

Run it: python examples/which_values.py [picture.png] [--smoke]
"""

import sys

import numpy as np

N, C, S = 4, 6, 5

# Of an array (N, C, S), the values of the first group.
GROUPS = {
    "BatchNorm": np.s_[:, 0, :],
    "LayerNorm, RMSNorm": np.s_[0, :, :],
    "GroupNorm, 3 groups": np.s_[0, :2, :],
    "InstanceNorm": np.s_[0, 0, :],
}
for name, group in GROUPS.items():
    count = np.empty((N, C, S))[group].size
    print(f"{name:20} {count:3} of {N * C * S} values share a mean and a variance")

pictures = [argument for argument in sys.argv[1:] if argument.endswith(".png")]
if pictures:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(GROUPS), figsize=(9, 2.9), layout="constrained",
        subplot_kw={"projection": "3d", "proj_type": "ortho"},
    )  # fmt: skip
    for axes, (name, group) in zip(panels, GROUPS.items(), strict=True):
        # Axes to the right, into the depth and upwards: channels, examples, positions.
        coloured = np.zeros((N, C, S), bool)
        coloured[group] = True
        coloured = coloured.transpose(1, 0, 2)
        faces = np.where(coloured, "#1f77b4", "#f2f2f2")
        axes.voxels(np.ones(coloured.shape, bool), facecolors=faces, edgecolor="0.5", lw=0.5,
                    shade=False)  # fmt: skip
        axes.set_axis_off()
        axes.text(C / 2, -1.5, -0.8, "channels", ha="center", fontsize=8)
        axes.text(C + 1.3, N / 2, -0.8, "examples", ha="center", fontsize=8)
        axes.text(-0.4, 0, S / 2, "positions", "z", ha="center", va="center", fontsize=8)
        axes.set_title(name, fontsize=10, y=1.0)
        axes.set_box_aspect((C, N, S), zoom=1.0)
        axes.view_init(22, -50)
    figure.savefig(pictures[0], dpi=150)
