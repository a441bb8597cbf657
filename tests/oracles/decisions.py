"""Roll-ups, rankings and confidence by their definitions, one sample and one visit at a time."""

import math

from scipy.stats import t as student


def rollup(values, group_of, content_of):
    """Sums by group, a content's joint value in equal parts to the groups that have it."""
    sums = {}
    for sample in values:
        same = [s for s in values if s == sample or content_of[s] == content_of[sample] is not None]
        groups = sorted({group_of[s] for s in same})
        for group in groups:
            part = values[sample] / len(groups)
            sums[group] = sums.get(group, 0.0) + part
    return sums


def harm(visits, targets):
    """By sample, the lowest of its normalised sums over targets."""
    sizes = {}
    for visit in visits:
        size = sum(abs(visit[t]) for t in targets) / len(targets)
        sizes.setdefault(visit["step"], []).append(size)
    sums = {}
    for visit in visits:
        mean = sum(sizes[visit["step"]]) / len(sizes[visit["step"]])
        of = sums.setdefault(visit["sample_id"], dict.fromkeys(targets, 0.0))
        for t in targets:
            of[t] += visit[t] / mean
    return {sample: min(of.values()) for sample, of in sums.items()}


def confidence(numbers, prior):
    """By sample, that the mean is below 0: a t test on the means of the early and the late half."""
    halves = {}
    for s, v in numbers.items():
        middle = (len(v) + 1) // 2
        early, late = v[:middle], v[middle:]
        halves[s] = sum(early) / len(early), sum(late) / len(late)
    squares = {s: (a - b) ** 2 / 2 for s, (a, b) in halves.items()}
    pooled = sum(squares.values()) / len(squares)
    found = {}
    for s, (a, b) in halves.items():
        variance = (prior * pooled + squares[s]) / (prior + 1)
        found[s] = 1 - float(student.cdf((a + b) / 2 / math.sqrt(variance / 2), prior + 1))
    return found
