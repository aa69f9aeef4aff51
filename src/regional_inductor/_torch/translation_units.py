"""One C++ translation unit out of the sources of several of Inductor's kernels.

Includes go on top, each kernel into a namespace of its own. The unit is a Python module that becomes the
kernel whose key it is imported under, so that one library can lie under the names of all its kernels.

Checked on torch 2.11 and 2.13: `CppPythonBindingsCodeCache.suffix_template` and the name under which
`_load_library_inner` imports a library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SUFFIX = "// Python bindings to call kernel():"
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b.*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(\w+)[ \t]*(.*)$", re.MULTILINE)
_HARMLESS_PRAGMA = re.compile(r"omp\b|unroll\b|GCC (?:ivdep|unroll)\b|clang loop\b")
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.MULTILINE)
_ONCE = re.compile(r"^[ \t]*#define PY_SSIZE_T_CLEAN[ \t]*$", re.MULTILINE)


def not_beside_others(source: str) -> str:
    """Why a kernel can't be in a unit with others, or ``""``: it has directives that reach beyond it."""
    code, found, _ = source.partition(_SUFFIX)
    if not found:
        return "its bindings aren't where they are expected"
    for match in _DIRECTIVE.finditer(code):
        kind, rest = match.groups()
        if kind != "include" and not (kind == "pragma" and _HARMLESS_PRAGMA.match(rest)):
            return f"it has {match.group(0).strip()}"
    return ""


def unit_source(sources: Mapping[str, str]) -> str:
    """One translation unit for the sources of several kernels.

    Each source defines ``kernel`` and the module of that name around it. In the unit they are called
    ``kernel_KEY``, and the unit's own module ``kernel`` becomes the one whose key is in the name that it
    is imported under: Inductor imports ``KEY.kernel``.

    Args:
        sources: By the key under which Inductor knows each kernel's library; `not_beside_others` had
            nothing to say of any.
    """
    includes = dict.fromkeys(("#include <cstring>",))
    bodies = []
    for key, source in sources.items():
        includes |= dict.fromkeys(match.group(0).strip() for match in _INCLUDE.finditer(source))
        body = _ONCE.sub("", _INCLUDE.sub("", source))
        undefined = "".join(f"#undef {name}\n" for name in _DEFINE.findall(body))
        bodies.append(
            f"#define kernel kernel_{key}\n#define PyInit_kernel PyInit_kernel_{key}\n"
            f"namespace unit_{key} {{\n{body}\n}}\n"
            f"#undef kernel\n#undef PyInit_kernel\n{undefined}"
        )
    declared = "".join(f"PyMODINIT_FUNC PyInit_kernel_{key}(void);\n" for key in sources)
    entries = "".join(f'    {{"{key}.", PyInit_kernel_{key}}},\n' for key in sources)
    dispatch = _DISPATCH.replace("ENTRIES", entries)
    return "\n".join(("#define PY_SSIZE_T_CLEAN", *includes, *bodies, declared, dispatch))


# The second phase of a module's initialisation gets the name that it is imported under, the first
# doesn't. https://docs.python.org/3/c-api/module.html#multi-phase-initialization
_DISPATCH = r"""
namespace {

struct Entry {
    const char* prefix;
    PyObject* (*init)();
};

const Entry entries[] = {
ENTRIES};

PyObject* create(PyObject* spec, PyModuleDef*) {
    PyObject* name = PyObject_GetAttrString(spec, "name");
    if (name == nullptr) {
        return nullptr;
    }
    PyObject* module = nullptr;
    const char* text = PyUnicode_AsUTF8(name);
    if (text != nullptr) {
        for (const Entry& entry : entries) {
            if (std::strncmp(text, entry.prefix, std::strlen(entry.prefix)) == 0) {
                module = entry.init();
                break;
            }
        }
        if (module == nullptr && !PyErr_Occurred()) {
            PyErr_Format(PyExc_ImportError, "this library holds no kernel for %s", text);
        }
    }
    if (module != nullptr) {
        // KEY.kernel_KEY: under the last part of this name it can be imported from any file.
        PyObject* own = PyUnicode_FromFormat("%U_%.*s", name,
            static_cast<int>(std::strchr(text, '.') - text), text);
        if (own == nullptr || PyObject_SetAttrString(module, "__name__", own) < 0) {
            Py_CLEAR(module);
        }
        Py_XDECREF(own);
    }
    Py_DECREF(name);
    return module;
}

PyModuleDef_Slot slots[] = {
    {Py_mod_create, reinterpret_cast<void*>(create)},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "kernel", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_kernel(void) {
    return PyModuleDef_Init(&definition);
}
"""
