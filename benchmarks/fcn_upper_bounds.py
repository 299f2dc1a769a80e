"""What a coarse output costs at best, without training: `python benchmarks/fcn_upper_bounds.py --data CAMVID`.

Every label of CamVid (the folder that `jaxseg data prepare camvid --source` takes) is reduced by a stride and enlarged again, both by
nearest, and scored against itself: the mean IoU that a perfect network of that output stride reaches without interpolation. Long et al.
2015 print such a table for PASCAL VOC in their appendix.

A cell of stride x stride pixels has the label of its centre, row and column stride // 2; a cell cut off by the border, without a centre,
that of its neighbour. Void pixels of the full label count nowhere. A cell whose centre is void predicts the last class, since a network
always names one; for the training labels this gives 87.4 / 81.5 / 73.3 / 63.7 / 52.6 and is the first column. It is bicyclists that pay
for it. In the second column such a cell predicts void, a miss wherever the label is not void, and no class's false alarm.
"""

import functools
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Int

from jaxseg import metrics, ops
from jaxseg.cli import script
from jaxseg.data import camvid, images
from jaxseg.progress import progress

STRIDES = (2, 4, 8, 16, 32)


def coarsen(label: Int[Array, "n h w"], stride: int) -> Int[Array, "n h w"]:
    """The labels of the centres of all cells, enlarged to the cells.

    >>> coarsen(jnp.arange(7)[None, None].repeat(2, 1), 2)[0, 0].tolist()
    [1, 1, 3, 3, 5, 5, 5]
    """
    _, h, w = label.shape
    centres = label[:, stride // 2 :: stride, stride // 2 :: stride, None]
    rows, columns = (stride * n for n in centres.shape[1:3])
    cells = ops.resize(centres, (rows, columns), "nearest")[..., 0]
    return jnp.pad(cells, [(0, 0), (0, max(h - rows, 0)), (0, max(w - columns, 0))], mode="edge")[:, :h, :w]


@functools.partial(jax.jit, static_argnames=("stride", "num_classes"))
def confusion(label: Int[Array, "n h w"], stride: int, num_classes: int) -> Int[Array, "k1 k1"]:
    """Counts of the labels (void: 255) against themselves coarsened; the row and column `num_classes` are those of void."""
    coarse = jnp.minimum(coarsen(label, stride), num_classes)
    return metrics.confusion_matrix(label, coarse, num_classes=num_classes + 1)


def bounds(counts: Int[np.ndarray, "k1 k1"]) -> tuple[float, float]:
    """Mean IoU with void predicted as the last class, and with void predicted as such."""
    named = counts[:-1, :-1].copy()
    named[:, -1] += counts[:-1, -1]
    return metrics.scores(named)["miou"], float(np.nanmean(metrics.scores(counts)["iou"][:-1]))


def main(data: Annotated[Path, tyro.conf.arg(metavar="CAMVID")], split: Literal["train", "val", "test"] = "train") -> None:
    """Upper bounds of the mean IoU by output stride on CamVid's labels.

    Args:
      data: the folder that holds trainannot, valannot, testannot.
      split: whose labels.
    """
    items = camvid.listing(data.expanduser()).splits[split]
    k = camvid.INFO.num_classes
    counts = {stride: np.zeros((k + 1, k + 1), np.int64) for stride in STRIDES}
    with progress("labels", len(items)) as advance:
        for item in items:
            label = images.read_label(item.key[1]).astype(np.int32)
            label = np.where(label == camvid.VOID, camvid.INFO.ignore_index, label)[None]
            for stride in STRIDES:
                counts[stride] += np.asarray(confusion(label, stride, k))
            advance(1)
    print(f"CamVid {split}, {len(items)} labels: mean IoU over {k} classes, %\n")
    print("| stride | void as the last class | void as void |\n| ---: | ---: | ---: |")
    for stride in STRIDES:
        print("| {} | {:.1f} | {:.1f} |".format(stride, *(100 * score for score in bounds(counts[stride]))))


if __name__ == "__main__":
    script(main)
