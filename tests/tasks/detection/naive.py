"""The set loss in naive float64 NumPy, loops over pairs and SciPy's assignment: shares no code with attn_flax."""

import numpy as np
from scipy.optimize import linear_sum_assignment

WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}
ALPHA, GAMMA, NO_OBJECT = 0.25, 2.0, 0.1


def corners(box):
    x, y, w, h = np.float64(box)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def area(x1, y1, x2, y2):
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def iou_and_giou(a, b):
    a, b = corners(a), corners(b)
    inner = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    outer = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - inner
    iou = inner / union if union > 0 else 0.0
    return iou, iou - ((outer - union) / outer if outer > 0 else 0.0)


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits))
    return e / e.sum()


def focal(logit, present):
    p = 1 / (1 + np.exp(-np.float64(logit)))
    p_t, alpha_t = (p, ALPHA) if present else (1 - p, 1 - ALPHA)
    return -alpha_t * (1 - p_t) ** GAMMA * np.log(p_t)


def is_softmax(logits, num_classes):
    return logits.shape[-1] == num_classes + 1


def class_loss(logits, label, num_classes):
    """Of one query, with its weight."""
    if is_softmax(logits, num_classes):
        weight = NO_OBJECT if label < 0 else 1.0
        return -weight * np.log(softmax(logits)[num_classes if label < 0 else label])
    return sum(focal(logits[k], k == label) for k in range(num_classes))


def cost(logits, box, label, target, num_classes):
    if is_softmax(logits, num_classes):
        of_class = -softmax(logits)[label]
    else:
        of_class = focal(logits[label], True) - focal(logits[label], False)
    l1 = np.abs(np.float64(box) - target).sum()
    return WEIGHTS["class"] * of_class + WEIGHTS["l1"] * l1 - WEIGHTS["giou"] * iou_and_giou(box, target)[1]


def costs(logits, boxes, labels, targets, num_classes):
    """(q, m) of the objects there are."""
    objects = [j for j in range(len(labels)) if labels[j] >= 0]
    return objects, np.array(
        [[cost(logits[i], boxes[i], labels[j], targets[j], num_classes) for j in objects] for i in range(len(logits))]
    ).reshape(len(logits), len(objects))


def assigned(logits, boxes, labels, targets, num_classes):
    """For each query the object it is to find, or None."""
    objects, matrix = costs(logits, boxes, labels, targets, num_classes)
    of_query = [None] * len(logits)
    for i, j in zip(*linear_sum_assignment(matrix), strict=True):
        of_query[i] = objects[j]
    return of_query


def parts(logits, boxes, labels, targets, num_classes, of_queries=None, skip_empty=False):
    """The three parts of a batch: (b, q, k), (b, q, 4), (b, m), (b, m, 4). `of_queries`: what each query is to find."""
    sums, weight = dict.fromkeys(WEIGHTS, 0.0), 0.0
    for b in range(len(logits)):
        found = of_queries or assigned(logits[b], boxes[b], labels[b], targets[b], num_classes)
        for i, j in enumerate(found):
            label = -1 if j is None else labels[b, j]
            if skip_empty and label < 0:
                continue
            sums["class"] += class_loss(logits[b, i], label, num_classes)
            weight += NO_OBJECT if label < 0 else 1.0
            if label >= 0:
                sums["l1"] += np.abs(np.float64(boxes[b, i]) - targets[b, j]).sum()
                sums["giou"] += 1 - iou_and_giou(boxes[b, i], targets[b, j])[1]
    times = len(of_queries) // labels.shape[1] if of_queries else 1
    count = times * (labels >= 0).sum() or len(labels)
    by = {"class": (weight or 1) if is_softmax(logits, num_classes) else count, "l1": count, "giou": count}
    return {name: sums[name] / by[name] for name in sums}


def total(of_parts):
    return sum(WEIGHTS[name] * value for name, value in of_parts.items())


def loss(out, labels, targets, num_classes, groups=0):
    """The whole loss of a detector's output, and the parts of its last layer."""
    layers = [parts(*layer, labels, targets, num_classes) for layer in zip(out["logits"], out["boxes"], strict=True)]
    value = sum(map(total, layers))
    if "proposals" in out:
        value += total(parts(out["proposals"]["logits"], out["proposals"]["boxes"], labels, targets, num_classes))
    if groups:
        objects = list(range(labels.shape[1])) * groups
        for layer in zip(out["denoised"]["logits"], out["denoised"]["boxes"], strict=True):
            value += total(parts(*layer, labels, targets, num_classes, objects, skip_empty=True))
    return value, layers[-1]


def scene(rng, counts, most, num_classes):
    """Labels (b, m) and boxes (b, m, 4) of images with so many objects, which may stand anywhere in their row."""
    labels, boxes = np.full((len(counts), most), -1, np.int32), np.zeros((len(counts), most, 4), np.float32)
    for row, count in enumerate(counts):
        places = rng.permutation(most)[:count]
        labels[row, places] = rng.integers(0, num_classes, count)
        size = rng.uniform(0.05, 0.5, (count, 2))
        boxes[row, places] = np.concatenate([rng.uniform(size / 2, 1 - size / 2), size], 1)
    return labels, boxes
