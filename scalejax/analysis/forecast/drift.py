"""How far a law may be from the truth: the drift, a random process that is added to every law.

No law is exact, and a forecast that trusts its law misses by more the farther it goes. So log loss is taken as

    log loss = law + drift + noise.

The drift's slope in the logarithm of a predictor is a random walk (an integrated Wiener process; Wahba 1978), plus a
Wiener process for what turns more sharply. It starts with nothing where the data start and its variance grows with the
third, respectively the first, power of the distance in logarithms: near the data the law and its drift agree with
them, beyond it the drift widens the interval. With size and data the drifts add up, and the bend along the data may
differ smoothly from size to size (the product of both processes): the twist. Along the size there may be less of all:
the lean.

How large these are is not set: all combinations of a grid take part, each with the probability that it gives
to the rows. That marginal likelihood is the product of the densities with which each row is forecast from those before
it, hence a validation over rolling origins (Dawid 1984) inside the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Standard deviations in log loss, a unit of distance being a factor of e. The grid reaches from what no measurement
# resolves to what no forecast survives; no law is exact, so a bend of zero is not in it.
NOISES = np.geomspace(5e-4, 0.25, 24)  # of one training run
BENDS = tuple(0.005 * 2**k for k in range(8))  # of the slope, after a distance of one
STEPS = (0.0, 0.003, 0.01, 0.03, 0.1)  # of the Wiener process, after a distance of one
TWISTS = (0.0, 0.5, 2.0, 8.0)  # variance of the bend that a size has to itself, over that of all sizes
LEANS = (1.0, 0.2)  # the bend along the size over that along the data: curves often turn along the data alone
UNLIKELY = 1e-5  # drifts, and noises, that have less of the probability are left out


@dataclass(frozen=True)
class Drift:
    """Rows, and the covariance of their log losses for each size of the drift and each noise.

    The covariances of one drift differ in the noise s alone: K = s^2 V + M, with V diagonal. With the eigenvectors U
    and eigenvalues l of V^-1/2 M V^-1/2, and W = U' V^-1/2, it is K^-1 = W' diag(1 / (s^2 + l)) W for every s.

    The height of a law is unknown, so that a law is given by log losses that a constant may be added to. With R its
    residuals and 1 a vector of ones, the height is that of generalised least squares, and

        log likelihood = -(R' K^-1 R - (1' K^-1 R)^2 / (1' K^-1 1) + log det K + log 1' K^-1 1) / 2.

    A number of a combination is that of its drift times the number of noises, plus that of its noise.

    Attributes:
        positions: natural logarithms of the predictors relative to the last row's, (predictors, rows).
        origin: where the drift starts, (predictors,).
        sizes: bend, step, twist and lean of each drift, (drifts, 4).
        rotations: W of each, (drifts, rows, rows).
        eigenvalues: l of each, (drifts, rows).
        noise_sizes: of one run, in log loss, (noises,).
        log_prior: of each noise, with what does not depend on the law, (noises,).
    """

    positions: Floats
    origin: Floats
    sizes: Floats
    rotations: Floats
    eigenvalues: Floats
    noise_sizes: Floats
    log_prior: Floats

    @property
    def noises(self) -> Floats:
        """The noise of one run for each combination, (combinations,)."""
        return np.tile(self.noise_sizes, len(self.sizes))

    def log_likelihood(self, residuals: Floats) -> Floats:
        """Return the log likelihood of each law and combination, (laws, combinations), from residuals (laws, rows)."""
        parts = []
        for rotation, values in zip(self.rotations, self.eigenvalues, strict=True):
            precisions = 1 / (self.noise_sizes**2 + values[:, None])  # (rows, noises)
            turned, ones = residuals @ rotation.T, rotation.sum(axis=1)
            total = ones**2 @ precisions
            fitted = ((turned * ones) @ precisions) ** 2 / total
            logs = self.log_prior + 0.5 * (np.log(precisions).sum(axis=0) - np.log(total))
            parts.append(logs - 0.5 * (turned**2 @ precisions - fitted))
        return np.concatenate(parts, axis=1)

    def inverse(self, combination: int) -> Floats:
        """Return K^-1, (rows, rows)."""
        drift, noise = divmod(combination, len(self.noise_sizes))
        rotation = self.rotations[drift]
        return (rotation.T / (self.noise_sizes[noise] ** 2 + self.eigenvalues[drift])) @ rotation

    def beyond(self, new: Floats, combinations: Sequence[int]) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yield what the rows say of new positions (predictors, points) by each of some combinations.

        Yields:
            What residuals are multiplied by to give the height of a law, (rows,); what the residuals from that height
            are multiplied by to give the drift at the points, (rows, points); and the covariance (points, points) of
            law and drift there, that of the height included, noise of new runs not.
        """
        to_rows, to_new = walks(self.positions, new, self.origin), walks(new, new, self.origin)
        for combination in combinations:
            size = self.sizes[combination // len(self.noise_sizes)]
            inverse = self.inverse(combination)
            sums = inverse.sum(axis=0)
            shared = combined(to_rows, size)
            shift = inverse @ shared
            missing = 1 - shift.sum(axis=0)
            own = combined(to_new, size) - shared.T @ shift + missing[:, None] * (missing / sums.sum())
            yield sums / sums.sum(), shift, own


def drift_of(
    positions: Floats, variances: Floats, *, residuals: Floats, squares: float = 0.0, freedom: int = 0
) -> Drift:
    """Return the covariances of rows, for all drifts and noises that any of some laws makes likely.

    Args:
        positions: natural logarithms of the predictors, (predictors, rows); size first where there are two.
        variances: of each row's noise in units of one run's, (rows,): 1/3 for a mean of three runs.
        residuals: of laws that lie where the rows' laws are, (laws, rows).
        squares: sum of squared deviations, in log loss, of runs from the mean of the runs at their place.
        freedom: degrees of freedom of that sum.
    """
    origin = positions.min(axis=1)
    several = (TWISTS, LEANS) if len(positions) == 2 else (TWISTS[:1], LEANS[:1])
    sizes = np.stack([axis.ravel() for axis in np.meshgrid(BENDS, STEPS, *several, indexing="ij")], axis=1)
    scale = 1 / np.sqrt(variances)
    among = walks(positions, positions, origin)
    matrices = np.stack([combined(among, size) for size in sizes])
    values, vectors = np.linalg.eigh(matrices * scale[:, None] * scale)
    log_prior = -freedom * np.log(NOISES) - squares / (2 * NOISES**2)
    whole = Drift(
        positions, origin, sizes, np.swapaxes(vectors, 1, 2) * scale, np.maximum(values, 0.0), NOISES, log_prior
    )
    logs = log_sum(whole.log_likelihood(residuals), axis=0).reshape(len(sizes), len(NOISES))
    drifts, noises = (each > each.max() + np.log(UNLIKELY) for each in (log_sum(logs, axis=1), log_sum(logs, axis=0)))
    return replace(
        whole, sizes=sizes[drifts], rotations=whole.rotations[drifts], eigenvalues=whole.eigenvalues[drifts],
        noise_sizes=NOISES[noises], log_prior=log_prior[noises],
    )  # fmt: skip


def log_sum(logs: Floats, *, axis: int) -> Floats:
    """Return the logarithm of the sum of exponentials along an axis; faster than `np.logaddexp.reduce`."""
    most = logs.max(axis=axis, keepdims=True)
    return np.log(np.exp(logs - most).sum(axis=axis)) + most.squeeze(axis)


def walks(one: Floats, other: Floats, origin: Floats) -> tuple[Floats, Floats]:
    """Return the covariances (predictors, m, n) of an integrated Wiener process and of a Wiener process.

    Args:
        one: positions, (predictors, m).
        other: positions, (predictors, n).
        origin: where both start with nothing, (predictors,).
    """
    start = origin[:, None, None]
    near = np.maximum(np.minimum(one[:, :, None], other[:, None, :]) - start, 0)
    far = np.maximum(np.maximum(one[:, :, None], other[:, None, :]) - start, 0)
    return near**2 * (3 * far - near) / 6, near


def combined(parts: tuple[Floats, Floats], size: Floats) -> Floats:
    """Return the covariance (m, n) of the drift of a size (bend, step, twist, lean), from the walks it consists of."""
    (*size_smooth, smooth), (*size_near, near) = parts  # of two predictors the first is the size, the last is the data
    bend, step, twist, lean = size
    if not size_smooth:
        return bend**2 * smooth + step**2 * near
    bent = (1 + twist * size_smooth[0]) * smooth + lean**2 * size_smooth[0]
    return bend**2 * bent + step**2 * (near + lean**2 * size_near[0])
