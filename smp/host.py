"""Which engine this host can run.  LLVM is asked about the processor only when somebody wants to know."""

import platform

NEEDED = ("bmi", "bmi2", "lzcnt", "popcnt", "avx", "fma")  # what translated code uses beyond the x86-64 baseline


def untranslatable() -> str:
    """Why this host can't run translated code, or ''."""
    if platform.machine() != "x86_64":
        return f"this host is {platform.machine()}, not x86_64"
    from llvmlite import binding as llvm

    features = llvm.get_host_cpu_features()
    missing = [name for name in NEEDED if not features.get(name)]
    return f"this processor has no {', '.join(missing)}" if missing else ""


def default_engine() -> str:
    """What --engine is when it is not given."""
    return "interp" if untranslatable() else "jit"


def default_engine_text() -> str:
    """The same for people: with the reason when it is the slower one."""
    reason = untranslatable()
    return f"interp ({reason})" if reason else "jit"
