"""One time step of recurrent cells on the CPU, forward and backward: all but the matrix products.

`gates` (N, G H) is the input's product of one step, `product` (N, G H) the hidden state's, for the
gates of a cell side by side: i, f, g, o of an LSTM; r, z, n of a GRU; one of an Elman network.
Sequences may have unequal lengths (N,), or none: the empty array. One that has ended keeps its
state, and its gradient passes through. Rows are independent, so threads share them out freely. Each
gate has a loop of its own, which vectorizes.
"""

from numba import prange

from ._jit import Kernel, device_function, workers
from .elementwise_cpu import _tanh, exp

# ---------------------------------------------------------------- kernels


@device_function
def _sigmoid_of(x):
    """x = 1 / (1 + exp(-x)) in place."""
    one = x.dtype.type(1)
    for j in range(x.size):
        e = exp(-abs(x[j]))
        x[j] = (e if x[j] < 0 else one) / (one + e)


@device_function
def _ended(lengths, n, t):
    """Whether sequence n is over at time t."""
    return lengths.size > 0 and t >= lengths[n]


@device_function
def _keep(state, after):
    """after = state, of one row."""
    for j in range(state.size):
        after[j] = state[j]


@device_function
def _pass_on(dy, dproduct, carried, dgates):
    """Gradient of a row that kept its state: all goes to the state before."""
    for j in range(dy.size):
        carried[j] += dy[j] + dproduct[j]
    for j in range(dgates.size):
        dgates[j] = 0


@Kernel
def _lstm_step(gates, product, h, c, lengths, t, saved, h_after, c_after):
    """c' = f c + i g, h' = o tanh(c'); saved (N, 4 H) is i, f, g, o; states (N, H)."""
    H = h.shape[1]
    for n in prange(h.shape[0]):
        hidden, cell = h_after[n], c_after[n]
        if _ended(lengths, n, t):
            _keep(h[n], hidden)
            _keep(c[n], cell)
            continue
        own, other, before, s = gates[n], product[n], c[n], saved[n]
        for j in range(s.size):
            s[j] = own[j] + other[j]
        i, f, g, o = s[:H], s[H : 2 * H], s[2 * H : 3 * H], s[3 * H :]
        _sigmoid_of(s[: 2 * H])
        for j in range(H):
            g[j] = _tanh(g[j])
        _sigmoid_of(o)
        for j in range(H):
            cell[j] = f[j] * before[j] + i[j] * g[j]
        for j in range(H):
            hidden[j] = o[j] * _tanh(cell[j])


@Kernel
def _lstm_step_backward(
    dh, dc, dproduct, saved, c, c_after, lengths, t, dh_carried, dc_carried, dgates
):
    """Gradients of the gates (N, 4 H), and of c in dc_carried; dh_carried is of ended rows."""
    H = c.shape[1]
    for n in prange(c.shape[0]):
        over, d, passed = dh[n], dc_carried[n], dh_carried[n]
        before, after, more = c[n], c_after[n], dc[n]
        s, target, product = saved[n], dgates[n], dproduct[n]
        if _ended(lengths, n, t):
            _pass_on(over, product, passed, target)
            for j in range(H):
                d[j] += more[j]
            continue
        one = c.dtype.type(1)
        i, f, g, o = s[:H], s[H : 2 * H], s[2 * H : 3 * H], s[3 * H :]
        di, df = target[:H], target[H : 2 * H]
        dg, do = target[2 * H : 3 * H], target[3 * H :]
        for j in range(H):
            whole = over[j] + product[j] + passed[j]
            passed[j] = 0
            squashed = _tanh(after[j])
            do[j] = whole * squashed * o[j] * (one - o[j])
            d[j] += more[j] + whole * o[j] * (one - squashed * squashed)
        for j in range(H):
            di[j] = d[j] * g[j] * i[j] * (one - i[j])
            dg[j] = d[j] * i[j] * (one - g[j] * g[j])
        for j in range(H):
            df[j] = d[j] * before[j] * f[j] * (one - f[j])
            d[j] *= f[j]


@Kernel
def _gru_step(gates, product, h, lengths, t, saved, h_after):
    """n = tanh(x_n + r m), h' = (1 - z) n + z h; m is the product of n; saved is r, z, n, m."""
    H = h.shape[1]
    for row in prange(h.shape[0]):
        hidden = h_after[row]
        if _ended(lengths, row, t):
            _keep(h[row], hidden)
            continue
        own, other, before, s = gates[row], product[row], h[row], saved[row]
        for j in range(2 * H):
            s[j] = own[j] + other[j]
        _sigmoid_of(s[: 2 * H])
        r, z, n, m = s[:H], s[H : 2 * H], s[2 * H : 3 * H], s[3 * H :]
        new_own, new_other = own[2 * H :], other[2 * H :]
        for j in range(H):
            m[j] = new_other[j]
            n[j] = _tanh(new_own[j] + r[j] * new_other[j])
        for j in range(H):
            hidden[j] = n[j] + z[j] * (before[j] - n[j])


@Kernel
def _gru_step_backward(dh, dproduct, saved, h, lengths, t, carried, dgates, dproducts):
    """Gradients of both products (N, 3 H), and in `carried` what h gets besides its product."""
    H = h.shape[1]
    for row in prange(h.shape[0]):
        over, product, passed, before = dh[row], dproduct[row], carried[row], h[row]
        s, target, through = saved[row], dgates[row], dproducts[row]
        if _ended(lengths, row, t):
            _pass_on(over, product, passed, target)
            for j in range(3 * H):
                through[j] = 0
            continue
        one = h.dtype.type(1)
        r, z, n, m = s[:H], s[H : 2 * H], s[2 * H : 3 * H], s[3 * H :]
        dr, dz, dn = target[:H], target[H : 2 * H], target[2 * H :]
        for j in range(H):
            whole = over[j] + product[j] + passed[j]
            dz[j] = whole * (before[j] - n[j]) * z[j] * (one - z[j])
            dn[j] = whole * (one - z[j]) * (one - n[j] * n[j])
            passed[j] = whole * z[j]
        for j in range(H):
            dr[j] = dn[j] * m[j] * r[j] * (one - r[j])
            through[2 * H + j] = dn[j] * r[j]
        for j in range(2 * H):
            through[j] = target[j]


@Kernel
def _elman_step(gates, product, h, lengths, t, rectified, h_after):
    """h' = tanh(gates + product), or max(., 0); all (N, H)."""
    for n in prange(h.shape[0]):
        own, other, hidden = gates[n], product[n], h_after[n]
        if _ended(lengths, n, t):
            _keep(h[n], hidden)
        elif rectified:
            zero = h.dtype.type(0)
            for j in range(hidden.size):
                total = own[j] + other[j]
                hidden[j] = zero if total < zero else total
        else:
            for j in range(hidden.size):
                hidden[j] = _tanh(own[j] + other[j])


@Kernel
def _elman_step_backward(dh, dproduct, h_after, lengths, t, rectified, carried, dgates):
    """Gradient of the sum inside, dh (1 - h'^2) or dh where h' > 0; all (N, H)."""
    for n in prange(dh.shape[0]):
        over, product, passed = dh[n], dproduct[n], carried[n]
        target, hidden = dgates[n], h_after[n]
        if _ended(lengths, n, t):
            _pass_on(over, product, passed, target)
            continue
        zero, one = dh.dtype.type(0), dh.dtype.type(1)
        for j in range(hidden.size):
            whole = over[j] + product[j] + passed[j]
            passed[j] = zero
            slope = one - hidden[j] * hidden[j]
            if rectified:
                slope = one if hidden[j] > zero else zero
            target[j] = whole * slope


# ---------------------------------------------------------------- launchers


def lstm_step(gates, product, h, c, lengths, t, saved, h_after, c_after):
    """Hidden and cell state after one more step."""
    _lstm_step(workers(saved.size), gates, product, h, c, lengths, t, saved, h_after, c_after)


def lstm_step_backward(
    dh, dc, dproduct, saved, h, c, h_after, c_after, lengths, t, dh_carried, dc_carried, dgates
):
    """Gradients of the gates; what is `carried` comes from the step behind, for the one before."""
    given = dh, dc, dproduct, saved, c, c_after, lengths, t
    _lstm_step_backward(workers(saved.size), *given, dh_carried, dc_carried, dgates)


def gru_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _gru_step(workers(saved.size), gates, product, h, lengths, t, saved, h_after)


def gru_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates, dproducts):
    """Gradients of the gates and of the hidden product; `carried` as in `lstm_step_backward`."""
    given = dh, dproduct, saved, h, lengths, t
    _gru_step_backward(workers(saved.size), *given, carried, dgates, dproducts)


def tanh_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _elman_step(workers(h.size), gates, product, h, lengths, t, False, h_after)


def tanh_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates):
    """Gradient of the one gate; `carried` as in `lstm_step_backward`."""
    given = dh, dproduct, h_after, lengths, t
    _elman_step_backward(workers(h.size), *given, False, carried, dgates)


def relu_step(gates, product, h, lengths, t, saved, h_after):
    """Hidden state after one more step."""
    _elman_step(workers(h.size), gates, product, h, lengths, t, True, h_after)


def relu_step_backward(dh, dproduct, saved, h, h_after, lengths, t, carried, dgates):
    """Gradient of the one gate; `carried` as in `lstm_step_backward`."""
    given = dh, dproduct, h_after, lengths, t
    _elman_step_backward(workers(h.size), *given, True, carried, dgates)
