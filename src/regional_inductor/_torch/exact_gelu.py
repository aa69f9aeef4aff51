"""GELU with `erf`, as the library computes it that eager calls for contiguous tensors: oneDNN.

Its kernels are made at run time, for AVX512: forward, `erf` is a polynomial of degree 5 in each of 24
intervals; backward, it is formula 7.1.26 of Abramowitz and Stegun with an exponential of its own. Both do
the same to every element, wherever it stands. Coefficients are those of oneDNN 3 (Apache License 2.0), as
bits; found in the kernels that it makes (`ONEDNN_JIT_DUMP=1`), with torch 2.13.
"""

from __future__ import annotations

import struct

from .exact_formulas import Formula

# By degree, then by interval; the last is for NaN.
_COEFFICIENTS = (
    (
        0xA6F2CB94,
        0x32827792,
        0x3381CC0C,
        0x34523D4A,
        0x351AC44D,
        0x35F36D88,
        0x36EE8229,
        0x37B8A3BB,
        0x3867A213,
        0x3940033B,
        0x3A2A5A1D,
        0x3AE35863,
        0x3B7828F2,
        0x3C08B14B,
        0x3C515ED3,
        0xBB503236,
        0xBD8D8E5E,
        0xBE8ABCD9,
        0xBF0C19A2,
        0xBECCB328,
        0x3E176CED,
        0x3F470D99,
        0x3F7ABB28,
        0x3F800000,
        0x00000000,
    ),
    (
        0x3F4C422A,
        0x3F4C421F,
        0x3F4C4207,
        0x3F4C41CB,
        0x3F4C413B,
        0x3F4C3FAD,
        0x3F4C3A2F,
        0x3F4C2D40,
        0x3F4C146A,
        0x3F4BC341,
        0x3F4AD08C,
        0x3F48F8CF,
        0x3F45FAC7,
        0x3F404E07,
        0x3F3B980F,
        0x3F48DFF3,
        0x3F78B21B,
        0x3FBB0704,
        0x40019C32,
        0x3FE536D6,
        0x3F81331E,
        0x3E6C8684,
        0x3C98F936,
        0x00000000,
        0x3F800000,
    ),
    (
        0xB62173F4,
        0x3735E4CF,
        0x37F2FF89,
        0x388C23BE,
        0x3917535C,
        0x39AB2AB0,
        0x3A60FADB,
        0x3AF9B960,
        0x3B6E5491,
        0x3C0A4EC5,
        0x3CA5AA8C,
        0x3D2138D9,
        0x3D8737D4,
        0x3DDFB660,
        0x3E0F27AB,
        0x3D94004B,
        0xBE0EFDEB,
        0xBF1D96C3,
        0xBF89DB58,
        0xBF6D9897,
        0xBEF69FB8,
        0xBDC4F8A8,
        0xBBDE6422,
        0x00000000,
        0x00000000,
    ),
    (
        0xBE081A19,
        0xBE084570,
        0xBE08639B,
        0xBE089837,
        0xBE08F409,
        0xBE09AB95,
        0xBE0B66D0,
        0xBE0E400A,
        0xBE124DF8,
        0xBE1BDE02,
        0xBE2F19C9,
        0xBE4931BF,
        0xBE685FBC,
        0xBE89C95F,
        0xBE96CBCA,
        0xBE8044AA,
        0xBE0550F2,
        0x3DCFD6A1,
        0x3E94C826,
        0x3E79345F,
        0x3DECEC91,
        0x3CA46568,
        0x3AA1E00A,
        0x00000000,
        0x00000000,
    ),
    (
        0xBA3D61DB,
        0x39F097A3,
        0x3A5845DC,
        0x3AB1FA35,
        0x3B0CEFB8,
        0x3B653AB6,
        0x3BCAE527,
        0x3C221712,
        0x3C6C5840,
        0x3CC0A703,
        0x3D1DCC19,
        0x3D63656D,
        0x3D955907,
        0x3DBF9910,
        0x3DD53F69,
        0x3DB7DCEF,
        0x3D639EBE,
        0xBA6EDE48,
        0xBD22BE69,
        0xBD041CF1,
        0xBC64F5AB,
        0xBB097A32,
        0xB8EBF380,
        0x00000000,
        0x00000000,
    ),
    (
        0x3CB7D80C,
        0x3C9B6050,
        0x3C978D11,
        0x3C92E850,
        0x3C8D058B,
        0x3C848454,
        0x3C6CD623,
        0x3C4C824B,
        0x3C2A7935,
        0x3BE0B390,
        0x3B0651AC,
        0xBB232F53,
        0xBBD42FA0,
        0xBC2C5366,
        0xBC492C9E,
        0xBC2A7AA6,
        0xBBD55D04,
        0xBA823A76,
        0x3B102AA8,
        0x3AE25A7E,
        0x3A31F792,
        0x38B84375,
        0x3689BB5A,
        0x00000000,
        0x00000000,
    ),
)


def _number(bits: int) -> str:
    return f"{struct.unpack('<f', struct.pack('<I', bits))[0].hex()}f"


_TABLE = ", ".join(f"{{{', '.join(map(_number, row))}}}" for row in _COEFFICIENTS)
# The library's conversion to bfloat16 makes zero of what is too small for a normal number.
_TO_BFLOAT16 = "return std::abs(r) < 0x1p-126f ? std::copysign(0.f, r) : r;"

_FORWARD = (
    f"static const float C[6][25] = {{{_TABLE}}};"
    " float s = std::abs(a); int32_t k; std::memcpy(&k, &s, 4);"
    " k = std::min(std::max((k - 0x3de00001) >> 21, 1), 24); if (s > 0x1.62b9dcp+2f) k = 23;"
    " float p = C[5][k]; for (int i = 4; i >= 0; i--) p = std::fma(p, s, C[i][k]);"
    " float r = a * ((std::signbit(a) ? -p : p) + 1.f) * .5f;"
)
_BACKWARD = (
    " float s = b * 0x1.6a09e6p-1f; float z = -(s * s); bool tiny = z < -0x1.5d58ap+6f;"
    " z = z < 0x1.62e43p+6f ? z : 0x1.62e43p+6f; z = z > -0x1.5d58ap+6f ? z : -0x1.5d58ap+6f;"
    " float n = std::floor(z * 0x1.715476p+0f + .5f); float y = std::fma(-n, 0x1.62e43p-1f, z);"
    " int32_t k = tiny ? 0 : ((int32_t)(n - 1.f) + 127) << 23; float e; std::memcpy(&e, &k, 4);"
    " float q = 0x1.0f9f9cp-7f; q = std::fma(q, y, 0x1.573a1ap-5f); q = std::fma(q, y, 0x1.555a8p-3f);"
    " q = std::fma(q, y, 0x1.fffdc6p-2f); q = std::fma(q, y, 0x1.fffff6p-1f); q = std::fma(q, y, 1.f);"
    " q = q * e * 2.f; float r = s * 0x1.20dd74p-1f * q;"
    " float t = 1.f / std::fma(0x1.4f740ap-2f, std::abs(s), 1.f); q = -q * t;"
    " float p = 0x1.0fb844p+0f; p = std::fma(p, t, -0x1.7401c6p+0f); p = std::fma(p, t, 0x1.6be1c6p+0f);"
    " p = std::fma(p, t, -0x1.23531cp-2f); p = std::fma(p, t, 0x1.04f20cp-2f); p = std::fma(q, p, 1.f);"
    " r = std::fma(std::signbit(s) ? -p : p, .5f, r + .5f); r = r * a;"
)

FORWARD = Formula("", f"{_FORWARD} return r;")
FORWARD_LOW = Formula("", f"{_FORWARD} {_TO_BFLOAT16}")
BACKWARD = Formula("", f"{_BACKWARD} return r;")
"""Of the gradient and the input."""
BACKWARD_LOW = Formula("", f"{_BACKWARD} {_TO_BFLOAT16}")
