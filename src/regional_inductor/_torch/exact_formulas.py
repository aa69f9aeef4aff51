"""What eager's CPU kernels compute for each element, as C++ over `at::vec`.

A formula says, operand by operand, which functions ATen calls and where its compiler contracted a
multiplication and an addition: ATen is built with contraction, code of Inductor's without. Operands
are `a`, `b`, ... in order, constants last; `V` is their type; `R` rounds to the tensors' type where
eager does so in the middle of an operator (it does nothing in float32). What an operator returns is
rounded by the caller.

Most kernels run the same function everywhere. Some run a vector function on whole pairs of vectors
and the C library's scalar function on what is left over, and on strided rows; the two differ in the
last bit. Those have a `scalar` too, and `loops.py` says which element gets which.

Checked bit by bit against torch 2.13 on AVX512, with MKL; other builds of torch may contract
differently, which is why every compiled region is also compared with eager before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """How one kernel of eager computes an element.

    Attributes:
        vector: C++ over vectors `a`, `b`, ... of type `V`: an expression, or statements with a
            `return`. Empty if eager has no vector code: `scalar` is then run on every element.
        scalar: The same over floats, where eager's scalar code gives other bits; else empty.
        vector_bytes: How wide eager's vectors are for this kernel, at most (32 if ATen has no
            AVX512 build of it). Means something only where both are given.
        in_one_block: What computes all elements of operands that are one dense block in one order,
            where that is another function.
    """

    vector: str
    scalar: str = ""
    vector_bytes: int = 64
    in_one_block: Formula | None = None

    @property
    def depends_on_position(self) -> bool:
        return bool(self.vector and self.scalar)


def _each(scalar: str) -> Formula:
    return Formula("", scalar)


def _mkl(function: str, argument: str) -> str:
    """A call of MKL's vector library in the mode that ATen uses: high accuracy, denormals kept."""
    return (
        "[](V v) {"
        # One name for each: two declarations of one name are one function to the compiler.
        f' void mkl_{function}(int, const float*, float*, long long) asm("{function}");'
        " constexpr int n = V::size();"
        f" alignas(64) float in[n], out[n]; v.store(in); mkl_{function}(n, in, out, 0x140102LL);"
        f" return V::loadu(out); }}({argument})"
    )


_MKL = {
    "acos": "vmsAcos",
    "asin": "vmsAsin",
    "atan": "vmsAtan",
    "cos": "vmsCos",
    "erf": "vmsErf",
    "erfc": "vmsErfc",
    "erfinv": "vmsErfInv",
    "exp": "vmsExp",
    "log": "vmsLn",
    "log10": "vmsLog10",
    "log2": "vmsLog2",
    "sin": "vmsSin",
    "sqrt": "vmsSqrt",
    "tan": "vmsTan",
    "tanh": "vmsTanh",
}
MKL_UNARY = {name: Formula(_mkl(function, "a")) for name, function in _MKL.items()}
"""float32 only: for other types ATen calls the vector's own method, as in `VECTOR_UNARY`."""

VECTOR_UNARY = {
    **{name: Formula(f"a.{name}()") for name in _MKL},
    **{
        name: Formula(f"a.{name}()")
        for name in ("expm1", "log1p", "lgamma", "abs", "neg", "floor", "ceil", "round", "trunc")
    },
    "asinh": _each("std::asinh(a)"),
    "acosh": _each("std::acosh(a)"),
    "sinh": Formula("a.sinh()", "std::sinh(a)"),
    "cosh": Formula("a.cosh()", "std::cosh(a)"),
    "atanh": Formula("a.atanh()", "std::atanh(a)"),
    "exp2": Formula("a.exp2()", "std::exp2(a)"),
    "digamma": _each("calc_digamma(a)"),
    "reciprocal": Formula("V(1) / a"),
    "frac": Formula("a - a.trunc()"),
    "sign": Formula("a.gt(V(0)) - a.lt(V(0))"),
    "relu": Formula("at::vec::clamp_min(a, V(0))"),
    "sigmoid": Formula("V(1) / (V(1) + a.neg().exp())", "1.f / (1.f + std::exp(-a))"),
    "silu": Formula("a / (V(1) + a.neg().exp())", "a / (1.f + std::exp(-a))"),
    "mish": Formula("a * a.exp().log1p().tanh()", "a * std::tanh(std::log1p(std::exp(a)))"),
    "hardswish": Formula("a * at::vec::minimum(at::vec::maximum(a + V(3), V(0)), V(6)) / V(6)"),
    "hardsigmoid": Formula("at::vec::minimum(at::vec::maximum(a + V(3), V(0)), V(6)) / V(6)"),
}

RSQRT = Formula("V(1) / a.sqrt()")
RSQRT_LOW = Formula("V(1) / a.sqrt()", "1.f / R(std::sqrt(a))", 32)
"""bfloat16's rsqrt; `pow(x, -0.5)` has the same two functions in an AVX512 kernel."""
POW_RSQRT_LOW = Formula(RSQRT_LOW.vector, RSQRT_LOW.scalar)

# The compiler of ATen contracted, and in `i1` also did the first step, in which b1 is 0, by itself.
_CHEBYSHEV = (
    " auto p = chebyshev_coefficients_{table}<float>(); auto A = std::get<0>(p);"
    " size_t n = std::get<1>(p); auto y = {y}; float b0 = {first}, b1 = {before}, b2 = 0;"
    " for (size_t i = {start}; i < n; i++)"
    " {{ b2 = b1; b1 = b0; b0 = std::fma(y, b1, -b2) + A[i]; }} float s = .5f * (b0 - b2);"
)
_SMALL, _LARGE = "x / 2.f - 2.f", "32.f / x - 2.f"


def _i0_series(table: str, y: str) -> str:
    return _CHEBYSHEV.format(table=table, y=y, first="A[0]", before=0, start=1)


def _i1_series(table: str, y: str) -> str:
    first = "std::fma(y, A[0], A[1])"
    return _CHEBYSHEV.format(table=table, y=y, first=first, before="A[0]", start=2)


I0 = _each(
    f"float x = std::abs(a); if (x <= 8.f) {{ {_i0_series('i0e_A', _SMALL)} return std::exp(x) * s; }}"
    f" {_i0_series('i0e_B', _LARGE)} return std::exp(x) * s / std::sqrt(x);"
)
I1 = _each(
    "float x = std::abs(a), out;"
    f" if (x <= 8.f) {{ {_i1_series('i1e_A', _SMALL)} out = std::exp(x) * x * s; }}"
    f" else {{ {_i1_series('i1e_B', _LARGE)} out = std::exp(x) * s / std::sqrt(x); }}"
    " return a < 0.f ? -out : out;"
)
TRIGAMMA = _each(
    "constexpr float pi = 3.14159265358979323846f; float x = a, sign = 1, sum = 0;"
    " if (x < .5f) { sign = -1; float s = std::sin(pi * x); sum -= pi * pi / (s * s); x = 1 - x; }"
    " for (int i = 0; i < 6; i++) { sum += 1 / (x * x); x += 1; } float r = 1 / (x * x);"
    " float tail = std::fma(-r, std::fma(-r, 1.f / 42, 1.f / 30), 1.f / 6);"
    " return sign * (sum + std::fma(r, tail, 1 + 1 / (2 * x)) / x);"
)


def polygamma(order: int) -> Formula:
    """Derivatives of `digamma`."""
    if order == 0:
        return VECTOR_UNARY["digamma"]
    if order == 1:
        return TRIGAMMA
    return _each(f"calc_polygamma(a, {order})")


# --- two and more operands ------------------------------------------------------------------------

ADD = Formula("a + b")
SUB = Formula("a - b")
MUL = Formula("a * b")
DIV = Formula("a / b")
DIV_TRUNC = Formula("R(a / b).trunc()")
DIV_FLOOR = _each(
    "if (b == 0) return a / b;"
    " float mod = R(std::fmod(a, b)), div = R(R(a - mod) / b);"
    " if (mod != 0 && (b < 0) != (mod < 0)) div = R(div - 1.f);"
    " if (div == 0) return std::copysign(0.f, R(a / b));"
    " float down = R(std::floor(div)); return R(div - down) > .5f ? down + 1.f : down;"
)
ADD_SCALED = Formula("fmadd(b, c, a)")
"""a + c * b, which ATen's compiler contracted."""
ADD_SCALED_LOW = Formula("a + b * R(c)", "a + R(R(c) * b)", 32)
ADDCMUL = Formula("fmadd(d * b, c, a)")
ADDCDIV = Formula("a + d * b / c")
LERP = Formula(
    "auto near = c.abs() < V(.5f);"
    " return fmadd(V::blendv(c - V(1), c, near), b - a, V::blendv(b, a, near));"
)
_MOD = (
    "auto m = {mod}; auto flip = (m != V(0)) & ((b < V(0)) ^ (m < V(0)));"
    " return V::blendv(m, m + b, flip);"
)
FMOD = Formula("a.fmod(b)", "std::fmod(a, b)", 32)
REMAINDER = Formula(
    _MOD.format(mod="a.fmod(b)"),
    "float m = std::fmod(a, b); return m != 0 && (b < 0) != (m < 0) ? m + b : m;",
    32,
)
POW = Formula("a.pow(b)", "std::pow(a, b)")
ATAN2 = Formula("a.atan2(b)", "std::atan2(a, b)")
HYPOT = Formula("a.hypot(b)", "std::hypot(a, b)")
COPYSIGN = Formula("a.copysign(b)")
LDEXP = Formula(
    "a * R(V(2).pow(b))", "volatile float two = 2; return a * R(std::pow((float)two, b));"
)
NEXTAFTER_LOW = _each("std::nextafter(at::BFloat16(a), at::BFloat16(b))")
NEXTAFTER = Formula("a.nextafter(b)")
# Of two zeros the vector code takes the second, the scalar code the first.
MAXIMUM = Formula(
    "at::vec::maximum(a, b)", "if (a != a || b != b) return NAN; return a < b ? b : a;", 32
)
MINIMUM = Formula(
    "at::vec::minimum(a, b)", "if (a != a || b != b) return NAN; return b < a ? b : a;", 32
)
# Of two zeros, the first; in bfloat16 the second. A signalling NaN is no missing number to the C library.
FMAX = _each("a == b ? a : std::fmax(a, b)")
FMIN = _each("a == b ? a : std::fmin(a, b)")
FMAX_LOW = _each("a == b ? b : std::fmax(a, b)")
FMIN_LOW = _each("a == b ? b : std::fmin(a, b)")
CLAMP = Formula("at::vec::clamp(a, R(b), R(c))")
CLAMP_TENSORS = Formula(
    "at::vec::minimum(at::vec::maximum(a, b), c)",
    "if (a != a || b != b || c != c) return NAN; float x = a < b ? b : a; return c < x ? c : x;",
    32,
)
CLAMP_MIN = Formula("at::vec::clamp_min(a, R(b))")
CLAMP_MAX = Formula("at::vec::clamp_max(a, R(b))")
XLOGY = _each("if (std::isnan(b)) return NAN; return a == 0 ? 0.f : a * R(std::log(b));")
HEAVISIDE = Formula("V::blendv(a.gt(V(0)), b, a == V(0))")
_LOGADD = (
    "V m = at::vec::maximum(a, b); V tail = (V(0) - (a - b).abs()).{exp}().log1p();"
    " return V::blendv({sum}, a, (a == b) & (a.abs() == V(INFINITY)));"
)
_LOGADD_SCALAR = (
    "if (std::isinf(a) && a == b) return a; float m = std::max(a, b);"
    " float tail = std::log1p(std::{exp}(-std::abs(a - b))); return {sum};"
)
_INVERSE_LN_2 = "(float)(1.0 / 0.693147180559945309417232121458176568)"
LOGADDEXP = Formula(
    _LOGADD.format(exp="exp", sum="m + tail"), _LOGADD_SCALAR.format(exp="exp", sum="m + tail")
)
LOGADDEXP2 = Formula(
    _LOGADD.format(exp="exp2", sum=f"fmadd(tail, V({_INVERSE_LN_2}), m)"),
    _LOGADD_SCALAR.format(exp="exp2", sum=f"std::fma(tail, {_INVERSE_LN_2}, m)"),
)

LOGICAL = {
    "logical_and": Formula("a.ne(V(0)) * b.ne(V(0))"),
    "logical_or": Formula("at::vec::maximum(a.ne(V(0)), b.ne(V(0)))"),
    "logical_xor": Formula("a.ne(V(0)).ne(b.ne(V(0)))"),
}
COMPARISONS = {name: Formula(f"a.{name}(b)") for name in ("eq", "ne", "lt", "le", "gt", "ge")}
"""1 where true, 0 elsewhere."""

# --- activations with constants -------------------------------------------------------------------

ELU = Formula(  # a, negative coefficient, positive coefficient, input scale
    "V::blendv((a * d).expm1() * b, a * c, a >= V(0))",
    "a < 0 ? std::expm1(a * d) * b : a * c",
)
SOFTPLUS = Formula(  # a, beta, threshold
    "V::blendv((a * b).exp().log1p() / b, a, a * b > c)",
    "a * b > c ? a : std::log1p(std::exp(a * b)) / b",
)
LEAKY_RELU = Formula("V::blendv(a * b, a, a > V(0))")
SOFTSHRINK = Formula(  # a, lambda
    "V::blendv(V::blendv(a + b, a - b, a > V(0)), V(0), (a >= b.neg()) & (a <= b))",
    "a > b ? a - b : (a < -b ? a + b : a * 0.f)",
    32,
)
HARDSHRINK = Formula("V::blendv(a, V(0), (a >= R(b).neg()) & (a <= R(b)))")
THRESHOLD = Formula("V::blendv(c, b, a <= d)")
"""Of a (the input), b (the value), c (what passes), d (the threshold)."""

_ROOT_HALF, _GELU_DENSITY = "0.70710678118654752440f", "0.39894228040143267794f"
GELU = Formula(
    f"a * V(.5f) * (V(1) + (a * V({_ROOT_HALF})).erf())",
    f"a * .5f * (1.f + std::erf(a * {_ROOT_HALF}))",
)
"""With `erf`, where eager doesn't call oneDNN (`exact_gelu.py`)."""
GELU_BACKWARD = Formula(
    f"V cdf = V(.5f) * (V(1) + (b * V({_ROOT_HALF})).erf());"
    f" V density = V({_GELU_DENSITY}) * (b * b * V(-.5f)).exp(); return a * fmadd(b, density, cdf);",
    f"float cdf = .5f * (1.f + std::erf(b * {_ROOT_HALF}));"
    f" float density = {_GELU_DENSITY} * std::exp(b * b * -.5f);"
    " return a * (cdf + b * density);",
)

_GELU_BETA = "(float)(1.41421356237309504880 * 1.12837916709551257390 * 0.5)"
_GELU_KAPPA = "(float)0.044715"
GELU_TANH = Formula(
    f"V(.5f) * a * (V(1) + (V({_GELU_BETA}) * fmadd(V({_GELU_KAPPA}), a * a * a, a)).tanh())",
    f".5f * a * (1.f + std::tanh({_GELU_BETA} * std::fma({_GELU_KAPPA}, a * a * a, a)))",
)

GLU = Formula("a * (V(1) / (V(1) + b.neg().exp()))", "a * (1.f / (1.f + std::exp(-b)))")
GLU_BACKWARD = Formula("(V(1) - a) * a * b * c")
"""Of the gate (rounded), what it multiplies and the gradient: the gradient of the gate's operand."""

LOG_SIGMOID = Formula("at::vec::minimum(a, V(0)) - a.abs().neg().exp().log1p()")
BCE_WITH_LOGITS = Formula(
    "V side = at::vec::minimum(a, V(0)) - a.abs().neg().exp().log1p();"
    " return R(R(V(1) - b) * a) - R(side);"
)
LOG_SIGMOID_BUFFER = Formula("a.abs().neg().exp()")
LOGIT = Formula(
    "(a / (V(1) - a)).log()",
    "std::log(a / (1.f - a))",
    in_one_block=Formula(_mkl("vmsLn", "a / (V(1) - a)")),
)
_CLAMPED = "V x = at::vec::clamp(a, b, c);"
LOGIT_CLAMPED = Formula(  # a, low, high
    f"{_CLAMPED} return (x / (V(1) - x)).log();",
    "float x = a < b ? b : (a > c ? c : a); return std::log(x / (1.f - x));",
    in_one_block=Formula(_mkl("vmsLn", f"[&]() -> V {{ {_CLAMPED} return x / (V(1) - x); }}()")),
)
LOGIT_LOW = _each("std::log(R(a / R(1.f - a)))")
LOGIT_CLAMPED_LOW = _each(
    "float x = a < b ? b : (a > c ? c : a); return std::log(R(x / R(1.f - x)));"
)

# --- their gradients: a is what comes from above, b the input or the output -------------------------

SIGMOID_BACKWARD = Formula("a * (V(1) - b) * b")
TANH_BACKWARD = Formula("a * fmadd(b.neg(), b, V(1))")
SILU_BACKWARD = Formula(
    "V s = V(1) / (V(1) + b.neg().exp()); return a * s * fmadd(b, V(1) - s, V(1));",
    "float s = 1.f / (1.f + std::exp(-b)); return a * s * std::fma(b, 1.f - s, 1.f);",
)
MISH_BACKWARD = Formula(
    "V s = V(1) / (V(1) + b.neg().exp()), t = b.exp().log1p().tanh();"
    " return a * fmadd(b * s, fmadd(t.neg(), t, V(1)), t);",
    "float s = 1.f / (1.f + std::exp(-b)), t = std::tanh(std::log1p(std::exp(b)));"
    " return a * std::fma(b * s, std::fma(-t, t, 1.f), t);",
)
GELU_TANH_BACKWARD = Formula(
    f"V beta({_GELU_BETA}), kappa({_GELU_KAPPA}); V square = b * b;"
    " V t = (beta * fmadd(kappa, b * square, b)).tanh(); V left = V(.5f) * b;"
    " V right = V(.5f) * (V(1) + t), inner = beta * fmadd(V(3) * kappa, square, V(1));"
    " return a * (right + left * fmadd(t.neg(), t, V(1)) * inner);",
    f"float beta = {_GELU_BETA}, kappa = {_GELU_KAPPA}; float square = b * b;"
    " float t = std::tanh(beta * std::fma(kappa, square * b, b)), left = .5f * b;"
    " float right = .5f * (1.f + t), inner = beta * std::fma(3.f * kappa, square, 1.f);"
    " return a * (right + left * std::fma(-t, t, 1.f) * inner);",
)
HARDSWISH_BACKWARD = Formula(
    "V::blendv(V::blendv(a * (b / V(3) + V(.5f)), a, b >= V(3)), V(0), b <= V(-3))"
)
HARDSIGMOID_BACKWARD = Formula("V::blendv(V(0), a * V(1.f / 6.f), (b > V(-3)) & (b < V(3)))")
HARDTANH_BACKWARD = Formula("V::blendv(V(0), a, (b > R(c)) & (b < R(d)))")
LEAKY_RELU_BACKWARD = Formula("V::blendv(a * c, a, b > V(0))")
ELU_BACKWARD = Formula(  # a, b, negative coefficient, positive coefficient, input scale
    "V::blendv(a * e * c * (b * e).exp(), a * d, b > V(0))",
    "b <= 0 ? a * e * c * std::exp(b * e) : a * d",
)
ELU_BACKWARD_OF_RESULT = Formula("V::blendv(a * e * (b + c), a * d, b > V(0))")
SOFTPLUS_BACKWARD = Formula(  # a, b, beta, threshold
    "V z = (b * c).exp(); return V::blendv(a * z / (z + V(1)), a, b * c > d);",
    "float z = std::exp(b * c); return b * c > d ? a : a * z / (z + 1.f);",
)
LOGIT_BACKWARD = _each("if (b < 0 || b > 1) return NAN; return a / R(b * R(1.f - b));")
LOGIT_CLAMPED_BACKWARD = _each(  # a, b, low, high
    "if (b < c || b > d) return 0.f; return a / R(b * R(1.f - b));"
)
LOG_SIGMOID_BACKWARD = Formula(  # a, b, the buffer that the forward kept (exp(-|b|))
    "V one(1), zero(0); auto below = b < zero; V slope = V::blendv(zero, one, below);"
    " V side = V::blendv(one.neg(), one, below); return a * (slope - side * c / (one + c));"
)

MSE = Formula("V d = R(a - b); return d * d;")
MSE_BACKWARD = Formula("V(2) * R(b - c) * a")
SMOOTH_L1_BACKWARD = Formula(  # a, b, the target, beta
    "V x = b - c; V inside = V::blendv(x * a / d, a.neg(), x <= d.neg());"
    " return V::blendv(inside, a, x >= d);"
)
HUBER_BACKWARD = Formula(  # a, b, the target, delta
    "V x = R(b - c); V inside = V::blendv(x * a, a.neg() * d, x < d.neg());"
    " return V::blendv(inside, a * d, x > d);"
)
SMOOTH_L1 = Formula(  # a, b, beta
    "V z = (a - b).abs(); return V::blendv(V(.5f) * z * z / c, z - V(.5f) * c, z >= c);"
)
HUBER = Formula(  # a, b, delta
    "V z = R(a - b).abs(); return V::blendv(V(.5f) * z * z, c * (z - V(.5f) * c), z > c);"
)

COPY = Formula("a")
NOT_ZERO = Formula("a.ne(V(0))")
CHOOSE = Formula("V::blendv(c, b, a != V(0))")
"""b where a holds, else c."""
FILL_WHERE = Formula("V::blendv(a, c, b != V(0))")
"""c where b holds, else a."""
CONSTANT = Formula("b")
IS_INFINITE = Formula("a.abs().eq(V(INFINITY))")
SIGN_BIT = _each("std::signbit(a) ? 1.f : 0.f")
NAN_TO_NUM = Formula(  # a, for NaN, for infinity, for minus infinity
    "V r = V::blendv(a, b, a != a); r = V::blendv(r, c, a == V(INFINITY));"
    " return V::blendv(r, d, a == V(-INFINITY));"
)
SINC = _each(
    "if (a == 0) return 1.f; float p = 3.14159265358979323846f * a; return std::sin(p) / p;"
)


def power_of_constant(exponent: float, low: bool) -> Formula:
    """``x ** exponent``, for which ATen has special cases."""
    if exponent == 0.0:
        return Formula("V(1)")
    if exponent == 1.0:
        return COPY
    if exponent == 2.0:
        return Formula("a * a")
    if exponent == 3.0:
        return Formula("R(a * a) * a")
    if exponent == 0.5:
        return VECTOR_UNARY["sqrt"] if low else MKL_UNARY["sqrt"]
    if exponent == -1.0:
        return Formula("V(1) / a")
    if exponent == -0.5:
        return POW_RSQRT_LOW if low else RSQRT
    if exponent == -2.0:
        return Formula("V(1) / R(a * a)")
    if low:
        return Formula("a.pow(R(b))", "std::pow(a, R(b))")
    # The scalar code has the exponent as a double.
    return Formula("a.pow(b)", f"(float)std::pow((double)a, {exponent!r})")


# Volatile, or the compiler takes exp2 where it sees that the base is 2.
POWER_WITH_CONSTANT_BASE = Formula(
    "R(b).pow(a)", "volatile float base = R(b); return std::pow((float)base, a);"
)
