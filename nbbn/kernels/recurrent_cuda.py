"""One time step of recurrent cells on a CUDA device, forward and backward: see `recurrent_cpu`.

Each thread treats 16 bytes of neighbouring hidden units of one sequence, with all of their gates.
Arithmetic is in float32, in float64 for float64 arrays.
"""

from ._cuda import Elementwise, device_function
from ._cuda_lanes import choose, load, positive_part, spread, store
from ._cuda_lanes import tanh as tanh_of
from .elementwise_cuda import _logistic

# ---------------------------------------------------------------- kernels


@device_function
def _gate(gates, product, at, like):
    """Sum of both products at a place."""
    return load(gates, at, like) + load(product, at, like)


@device_function
def _slope(y):
    """y (1 - y)."""
    return y * (spread(1, y) - y)


@device_function
def _ended(lengths, n, t):
    """Whether sequence n is over at time t."""
    return lengths.size > 0 and t >= lengths[n]


@Elementwise
def _lstm_step(i, like, operands):
    """c' = f c + i g, h' = o tanh(c'); saved (N, 4 H) is i, f, g, o; states (N, H)."""
    gates, product, h, c, saved, h_after, c_after, lengths, H, t = operands
    n = i // H
    if _ended(lengths, n, t):
        store(h_after, i, load(h, i, like))
        store(c_after, i, load(c, i, like))
    else:
        at = n * 4 * H + i % H
        into = _logistic(_gate(gates, product, at, like))
        kept = _logistic(_gate(gates, product, at + H, like))
        new = tanh_of(_gate(gates, product, at + 2 * H, like))
        out = _logistic(_gate(gates, product, at + 3 * H, like))
        store(saved, at, into)
        store(saved, at + H, kept)
        store(saved, at + 2 * H, new)
        store(saved, at + 3 * H, out)
        cell = kept * load(c, i, like) + into * new
        store(c_after, i, cell)
        store(h_after, i, out * tanh_of(cell))


@Elementwise
def _lstm_step_backward(i, like, operands):
    """Gradients of the gates (N, 4 H), and of c in dc_carried; dh_carried is of ended rows."""
    dh, dc, dproduct, saved, c, c_after, dgates, dh_carried, dc_carried, lengths, H, t = operands
    n = i // H
    at = n * 4 * H + i % H
    one, zero = spread(1, like), spread(0, like)
    whole = load(dh, i, like) + load(dproduct, i, like) + load(dh_carried, i, like)
    cell = load(dc_carried, i, like) + load(dc, i, like)
    if _ended(lengths, n, t):
        store(dh_carried, i, whole)
        store(dc_carried, i, cell)
        store(dgates, at, zero)
        store(dgates, at + H, zero)
        store(dgates, at + 2 * H, zero)
        store(dgates, at + 3 * H, zero)
    else:
        into, kept = load(saved, at, like), load(saved, at + H, like)
        new, out = load(saved, at + 2 * H, like), load(saved, at + 3 * H, like)
        squashed = tanh_of(load(c_after, i, like))
        cell = cell + whole * out * (one - squashed * squashed)
        store(dh_carried, i, zero)
        store(dgates, at, cell * new * _slope(into))
        store(dgates, at + H, cell * load(c, i, like) * _slope(kept))
        store(dgates, at + 2 * H, cell * into * (one - new * new))
        store(dgates, at + 3 * H, whole * squashed * _slope(out))
        store(dc_carried, i, cell * kept)


@Elementwise
def _gru_step(i, like, operands):
    """n = tanh(x_n + r m), h' = (1 - z) n + z h; m is the product of n; saved is r, z, n, m."""
    gates, product, h, saved, h_after, lengths, H, t = operands
    row = i // H
    before = load(h, i, like)
    if _ended(lengths, row, t):
        store(h_after, i, before)
    else:
        at, to = row * 3 * H + i % H, row * 4 * H + i % H
        r = _logistic(_gate(gates, product, at, like))
        z = _logistic(_gate(gates, product, at + H, like))
        m = load(product, at + 2 * H, like)
        n = tanh_of(load(gates, at + 2 * H, like) + r * m)
        store(saved, to, r)
        store(saved, to + H, z)
        store(saved, to + 2 * H, n)
        store(saved, to + 3 * H, m)
        store(h_after, i, n + z * (before - n))


@Elementwise
def _gru_step_backward(i, like, operands):
    """Gradients of both products (N, 3 H), and in `carried` what h gets besides its product."""
    dh, dproduct, saved, h, dgates, dproducts, carried, lengths, H, t = operands
    row = i // H
    at, to = row * 3 * H + i % H, row * 4 * H + i % H
    one, zero = spread(1, like), spread(0, like)
    whole = load(dh, i, like) + load(dproduct, i, like) + load(carried, i, like)
    dr, dz, dn, through = zero, zero, zero, zero
    if not _ended(lengths, row, t):
        r, z = load(saved, to, like), load(saved, to + H, like)
        n, m = load(saved, to + 2 * H, like), load(saved, to + 3 * H, like)
        dz = whole * (load(h, i, like) - n) * _slope(z)
        dn = whole * (one - z) * (one - n * n)
        dr = dn * m * _slope(r)
        through = dn * r
        whole = whole * z
    store(carried, i, whole)
    store(dgates, at, dr)
    store(dgates, at + H, dz)
    store(dgates, at + 2 * H, dn)
    store(dproducts, at, dr)
    store(dproducts, at + H, dz)
    store(dproducts, at + 2 * H, through)


@Elementwise
def _elman_step(i, like, operands):
    """h' = tanh(gates + product), or max(., 0); all (N, H)."""
    gates, product, h, h_after, lengths, H, t, rectified = operands
    if _ended(lengths, i // H, t):
        store(h_after, i, load(h, i, like))
    elif rectified:
        store(h_after, i, positive_part(_gate(gates, product, i, like)))
    else:
        store(h_after, i, tanh_of(_gate(gates, product, i, like)))


@Elementwise
def _elman_step_backward(i, like, operands):
    """Gradient of the sum inside, dh (1 - h'^2) or dh where h' > 0; all (N, H)."""
    dh, dproduct, h_after, dgates, carried, lengths, H, t, rectified = operands
    one, zero = spread(1, like), spread(0, like)
    whole = load(dh, i, like) + load(dproduct, i, like) + load(carried, i, like)
    hidden = load(h_after, i, like)
    if _ended(lengths, i // H, t):
        store(carried, i, whole)
        store(dgates, i, zero)
    else:
        store(carried, i, zero)
        if rectified:
            store(dgates, i, choose(hidden, whole, zero))
        else:
            store(dgates, i, whole * (one - hidden * hidden))


# ---------------------------------------------------------------- launchers


def _launch(kernel, arrays, lengths, t, *more):
    """Launch over the hidden units of the last of the arrays, (N, H)."""
    H = arrays[-1].shape[1]
    kernel(*arrays, lengths, H, t, *more, aligned=arrays, length=H)


def lstm_step(gates, product, h, c, lengths, t, saved, h_after, c_after):
    """Hidden and cell state after one more step."""
    _launch(_lstm_step, (gates, product, h, c, saved, h_after, c_after), lengths, t)


def lstm_step_backward(
    dh, dc, dproduct, saved, h, c, h_after, c_after, lengths, t, dh_carried, dc_carried, dgates
):
    """Gradients of the gates; what is `carried` comes from the step behind, for the one before."""
    arrays = dh, dc, dproduct, saved, c, c_after, dgates, dh_carried, dc_carried
    _launch(_lstm_step_backward, arrays, lengths, t)


def gru_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _launch(_gru_step, (gates, product, h, saved, h_after), lengths, t)


def gru_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates, dproducts):
    """Gradients of the gates and of the hidden product; `carried` as in `lstm_step_backward`."""
    arrays = dh, dproduct, saved, h, dgates, dproducts, carried
    _launch(_gru_step_backward, arrays, lengths, t)


def tanh_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _launch(_elman_step, (gates, product, h, h_after), lengths, t, 0)


def tanh_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates):
    """Gradient of the one gate; `carried` as in `lstm_step_backward`."""
    _launch(_elman_step_backward, (dh, dproduct, h_after, dgates, carried), lengths, t, 0)


def relu_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _launch(_elman_step, (gates, product, h, h_after), lengths, t, 1)


def relu_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates):
    """Gradient of the one gate; `carried` as in `lstm_step_backward`."""
    _launch(_elman_step_backward, (dh, dproduct, h_after, dgates, carried), lengths, t, 1)
