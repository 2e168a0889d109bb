"""Run the guest programs of tests/guest on a whole machine; each ends with 0 or with the number of a failed check.

HARTBEAT_UNDER_TEST=qemu runs the same on qemu-system-riscv64, which is how the programs themselves are validated.
HARTBEAT_GUEST_ARGS adds options to the machine, such as `--engine interp`.
"""

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from console import TIMEOUT

pytestmark = pytest.mark.conformance

HERE = Path(__file__).resolve().parent
UNDER_QEMU = os.environ.get("HARTBEAT_UNDER_TEST") == "qemu"
EXIT_SKIP = 77
MANY = (2, 4, 8)

# Program, numbers of harts, and what must hold.
PROGRAMS: list[tuple[str, tuple[int, ...], str]] = [
    ("harts", (1, 2, 4, 8), "every_hart_starts_once_with_its_own_id"),
    ("traps", (1,), "a_trap_reports_cause_pc_and_value"),
    ("amo_faults", (1,), "an_amo_faults_as_a_store"),
    ("delegation", (1,), "delegated_traps_arrive_in_s_mode"),
    ("interrupt_priority", (1,), "the_pending_interrupt_of_highest_priority_is_taken"),
    ("vectored", (1,), "vectored_interrupts_enter_at_four_times_the_cause"),
    ("mstatus_traps", (1,), "tvm_tw_and_tsr_trap_s_mode"),
    ("xret_clears_mprv", (1,), "mret_and_sret_below_m_clear_mprv"),
    ("warl", (1,), "warl_fields_keep_legal_values"),
    ("warl_mpp", (1,), "mpp_never_holds_a_reserved_privilege"),
    ("counters", (1,), "counters_count_and_obey_their_enables"),
    ("instret", (1,), "instret_counts_exactly"),
    ("pmp", (1,), "pmp_regions_deny_and_lock"),
    ("paging", (1,), "sv39_sv48_and_sv57_permit_and_fault"),
    ("ad_fault", (1,), "clear_a_or_d_is_a_page_fault_without_svadu"),
    ("ad_update", (1, 2, 4, 8), "svadu_sets_a_and_d_atomically"),
    ("misaligned", (1,), "misaligned_accesses_are_whole"),
    ("timer", (1,), "mtimecmp_and_stimecmp_raise_their_interrupts"),
    ("software_interrupt", (1,), "msip_is_a_level"),
    ("plic", (1,), "the_plic_routes_by_priority_and_threshold"),
    ("uart", (1,), "the_uart_is_a_16550"),
    ("rtc", (1,), "the_clock_gives_the_time_of_day"),
    ("smc", (1,), "self_modified_code_runs_after_fence_i"),
    ("lrsc_rules", (1, 4), "sc_fails_without_its_reservation"),
    ("ipi_storm", MANY, "every_ipi_arrives_exactly_once"),
    ("wake", MANY, "an_ipi_wakes_a_sleeping_hart"),
    ("timers", MANY, "each_hart_has_its_own_timer"),
    ("lrsc", MANY, "lr_sc_counters_are_exact"),
    ("amo", MANY, "amo_sums_are_exact"),
    ("amocas", MANY, "amocas_counters_are_exact"),
    ("spinlock", MANY, "a_spinlock_loses_no_increment"),
    ("aba", (2, 4), "sc_fails_after_any_store_of_another_hart"),
    ("litmus_sb", MANY, "fenced_store_buffering_is_not_seen"),
    ("litmus_mp", MANY, "message_passing_holds"),
    ("litmus_lb", MANY, "load_buffering_is_not_seen"),
    ("tearing", MANY, "aligned_accesses_do_not_tear"),
    ("fencei", MANY, "new_code_runs_on_other_harts_after_fence_i"),
    ("dma_code", (1, 2, 4), "code_that_a_device_wrote_runs_after_fence_i"),
    ("remapped_code", (1, 2, 4), "code_behind_changed_page_tables_runs_after_sfence_vma"),
    ("reused_pages", MANY, "code_in_a_page_that_is_mapped_anew_is_what_it_holds"),
    ("asids", (1, 2, 4), "address_spaces_are_switched_without_a_fence_and_fenced_apart"),
    ("code_beside_data", (1, 2, 4), "stores_beside_code_leave_it_what_it_is"),
    ("hot_loops", (2, 4), "what_others_do_to_a_busy_loop_holds_at_once"),
    ("far_loops", (1, 2, 4), "a_loop_with_a_function_in_another_page_sees_what_is_there"),
    ("fencei_racing", MANY, "code_rewritten_under_running_harts_is_old_or_new"),
    ("many_blocks", (1, 2, 4), "much_code_runs_on_all_harts_whatever_else_they_do"),
    ("shootdown", MANY, "a_changed_pte_holds_after_ipi_and_sfence_vma"),
]

# What QEMU 7.2 is known to get wrong; LAX in the programs leaves out single checks.
QEMU_FAILS = {
    "amo_faults": "reports the load fault for an AMO, lets misaligned AMOs through",
    "xret_clears_mprv": "keeps MPRV",
    "warl_mpp": "MPP holds 2",
    "instret": "counts host time without -icount",
    "ad_fault": "always sets A and D itself",
    "aba": "SC is a compare-and-swap",
    "fencei_racing": "a block translated between invalidation and store stays stale",
}
# Without AIA it takes pending interrupts by number.
QEMU_CPU = {"interrupt_priority": "rv64,x-smaia=on,x-ssaia=on"}


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_build", HERE / "guest" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = load_builder()


def build(name: str) -> Path:
    try:
        return builder.build(name, defines=("LAX",) if UNDER_QEMU else ())
    except builder.NoCompiler as error:
        # On a developer's machine a missing compiler is no failure; in CI it would hide every program.
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def disk() -> list[str]:
    """Options for a scratch disk; what is written to it is lost."""
    image = builder.cache_folder() / "scratch.img"
    with image.open("ab") as file:
        file.truncate(1 << 16)
    version = ["-global", "virtio-mmio.force-legacy=false"] if UNDER_QEMU else []
    drive = f"file={image},if=none,id=scratch,format=raw,snapshot=on"
    return ["-drive", drive, "-device", "virtio-blk-device,drive=scratch", *version]


def machine(name: str, harts: int) -> list[str]:
    cpu = QEMU_CPU.get(name, "rv64")
    under_test = ["qemu-system-riscv64", "-cpu", cpu] if UNDER_QEMU else [sys.executable, "-m", "smp"]
    options = ["-M", "virt", "-smp", str(harts), "-m", "64M", "-bios", "none", "-kernel", str(build(name))]
    options += disk() if name == "dma_code" else []
    return [*under_test, *options, "-nographic", *shlex.split(os.environ.get("HARTBEAT_GUEST_ARGS", ""))]


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The machine, as the leader of its own process group, of which nothing is left afterwards."""
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(name: str, harts: int) -> tuple[int, str]:
    """Exit status and console of the program; status 124 when it ran past TIMEOUT."""
    with started(machine(name, harts)) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as late:
            text = late.stdout or ""
            return 124, text if isinstance(text, str) else text.decode(errors="replace")
        return process.returncode, output


CASES = [pytest.param(name, harts, id=f"{holds}-{harts}") for name, counts, holds in PROGRAMS for harts in counts]


@pytest.mark.parametrize(("name", "harts"), CASES)
def test_guest(name: str, harts: int) -> None:
    status, output = run(name, harts)
    if status == EXIT_SKIP:
        pytest.skip(f"{name}: the machine lacks the extension")
    if status and UNDER_QEMU and name in QEMU_FAILS:
        pytest.xfail(f"QEMU: {QEMU_FAILS[name]}")
    assert status == 0, f"{name} with {harts} harts: check {status}\n{output}"


@pytest.mark.parametrize("harts", [1, 4])
def test_the_finisher_code_becomes_the_exit_status(harts: int) -> None:
    status, output = run("finisher_code", harts)
    assert status == 42, output


@pytest.mark.parametrize("harts", [1, 4])
def test_reset_starts_the_machine_again(harts: int) -> None:
    starts = 0
    with started(machine("reset", harts)) as process:
        deadline = time.monotonic() + TIMEOUT
        # A machine that stops saying anything is ended from outside: readline has no timeout of its own.
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(int(TIMEOUT) + 1)
        assert process.stdout
        while starts < 3 and time.monotonic() < deadline and (line := process.stdout.readline()):
            starts += "started" in line
        signal.alarm(0)
    assert starts == 3


def test_every_program_is_run() -> None:
    tested = {name for name, _, _ in PROGRAMS} | {"finisher_code", "reset"}
    assert tested == set(builder.programs())
