"""The translator: guest code to x86-64, a block at a time.

A block runs straight on from its first instruction, past conditional branches not taken, to a jump, a backward
branch, the end of the page or the limit.  A row has a template (smp/templates.py) or is a step: the
interpreter's own handler executes that single instruction.  So the translator knows the common rows and leaves
the meaning of all others where it is.

Registers: r15 is the hart record, r14 what is left of the quantum, rax, rcx and rdx are scratch, the others hold
the busiest guest registers (smp/x86.py).  Entering a block takes its instructions off r14; leaving it earlier, or
an instruction that traps, puts the rest back.
"""

from mem.atomics import load32, store32
from mem.machine import Machine
from mem.native import emitted, native, ref, table, unit
from mem.regions import CODE, CODE_ALIAS, CODE_TABLE, MACHINE, STEPS, STEPS_SHARE
from mem.word import I64, V, builder, lts, sext32
from smp.code import Slot
from smp.codecache import (
    AGAIN,
    ALARM_CHECK,
    BUCKETS,
    CODE_PER_ENTRY,
    FIRST_STEP,
    CodeTable,
    Stub,
    enter_block,
    lookup,
    text_of,
)
from smp.decode import (
    KIND,
    LIST,
    NO_ROW,
    emit_switch,
    find_row,
    length_of,
    put_operands,
    word_at,
)
from smp.hart import FP_ALLOWED, FP_LOADED, JUMP_ENTRIES, SINK, Hart
from smp.loopguard import admit
from smp.row import Kind
from smp.template_table import EXTRA, OP, PURE, STEP_TEMPLATE, TEMPLATE, apply_template
from smp.templates import (
    FAR,
    FIX,
    LEAVE,
    LINK,
    STEP_BYTES,
    STRAYING,
    add_stub,
    call_piece,
    call_step,
    cursor,
    effective_address,
    finish,
    result,
    source,
    step_slot,
)
from smp.templates_atomic import begin_window, leave_window
from smp.translated import LEAVE as LEAVE_CODE
from smp.translated import SYSTEM_CALLED, access, step_one
from smp.x86 import (
    BELOW,
    EQUAL,
    HART,
    IN_MEMORY,
    LEFT,
    LESS,
    NOT_BELOW,
    NOT_EQUAL,
    NOT_LESS,
    PIN,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    SIGN,
    aim,
    align_jump,
    byte,
    here,
    immediate,
    jump,
    jump_if,
    jump_to,
    load_constant,
    op_mem,
    op_reg,
    put,
    shift_immediate,
    use_guest,
    word32,
)
from smp.x86_sse import F_PIN, LOAD, load_mxcsr, store_mxcsr, vex_mem

# Kinds that the translator treats itself.
K_BRANCH, K_JAL, K_JALR = (kind.value for kind in (Kind.BRANCH, Kind.JAL, Kind.JALR))
K_LR = Kind.LR.value

MAX_INSTRUCTIONS = 64
BLOCK_ROOM = 16384  # bytes that a block and its stubs can take at most

LOAD_DOUBLE = LOAD[0]
LINK_PAGE = Hart.offset("link_page")
LEFT_FIELD, PC_FIELD, LINK_FIELD, JUMPS, ALARM = (Hart.offset(n) for n in ("left", "pc", "link", "jumps", "alarm"))
MXCSR, HOST_MXCSR, FP_INLINE, F = (Hart.offset(n) for n in ("mxcsr", "host_mxcsr", "fp_inline", "f"))
CONDITIONS = {"beq": EQUAL, "bne": NOT_EQUAL, "blt": LESS, "bge": NOT_LESS, "bltu": BELOW, "bgeu": NOT_BELOW}
CONDITION = table("u8", [CONDITIONS.get(row.base or row.name, 0) for row in LIST])


# Jumps


@native
def same_page(target: int) -> int:
    return (target ^ cursor().pc) >> 12 == 0


@native
def probe_jumps() -> None:
    """Jump to the block of the virtual pc in rax if the jump cache knows it; else leave to look it up."""
    op_reg(0, 0x8B, RCX, RAX)
    shift_immediate(0, 4, RCX, 3)
    immediate(0, 4, RCX, (JUMP_ENTRIES - 1) << 4)
    op_mem(1, 0x03, RCX, HART, JUMPS)
    op_mem(1, 0x3B, RAX, RCX, 0)
    aim(jump_if(NOT_EQUAL), cursor().exit)
    op_mem(0, 0xFF, 4, RCX, 8)


@native
def link_or_aim(site: int, target: int) -> None:
    """Aim a jump at the block of a pc of this page: at once if it is there, else when it is first taken.

    A jump forward passes over the look at the alarm: no loop is without a jump backward.
    """
    a = cursor()
    forward = target > a.pc
    if target == a.first_pc:
        aim(site, a.start)
        return
    code = lookup(a.page | target & 0xFFF, target, a.version)
    if code:
        aim(site, code + (ALARM_CHECK if forward else 0))
    else:
        add_stub(LINK, site, target, forward)


@native
def go(target: int) -> None:
    """The end of a block: on to a known pc."""
    if same_page(target):
        align_jump(1)
        link_or_aim(jump(), target)
    else:
        load_constant(RAX, target)
        probe_jumps()


@native
def compare_operands(s: Slot, number: int) -> None:
    """Set the flags as the branch needs them."""
    if s.rs2 == 0:
        host = source(s.rs1, RAX)
        op_reg(1, 0x85, host, host) if CONDITION[number] in (EQUAL, NOT_EQUAL) else immediate(1, 7, host, 0)
    else:
        use_guest(1, 0x3B, source(s.rs1, RAX), s.rs2, RCX)


@native
def t_branch(s: Slot, number: int, length: int) -> int:
    """A conditional branch; gives 1 when it ends the block (it goes backward, a loop)."""
    a = cursor()
    target = a.pc + sext32(s.imm)
    compare_operands(s, number)
    a.count += 1
    backward = lts(sext32(s.imm), 0)
    if not same_page(target):
        add_stub(FAR, jump_if(CONDITION[number]), target, 0)
    else:
        align_jump(2)
        link_or_aim(jump_if(CONDITION[number]), target)
    if backward:
        go(a.pc + length)
    else:
        end_segment()
    return backward


@native
def t_window_branch(s: Slot, number: int) -> None:
    """A conditional branch out of a constrained LR/SC sequence: the block goes on behind it in any case."""
    a = cursor()
    compare_operands(s, number)
    a.count += 1
    add_stub(STRAYING, jump_if(CONDITION[number]), a.pc + sext32(s.imm), a.window_lr)
    end_segment()


@native
def end_segment() -> None:
    """Say how many instructions the segment in hand has; the next one begins with the next instruction."""
    a = cursor()
    a.taken[a.segment] = a.count - a.begun
    store32(a.site - 4 + CODE_ALIAS, a.count - a.begun)
    a.segment += 1
    a.begun = a.count
    a.site = 0


@native
def begin_segment() -> None:
    """Behind a branch that was not taken: take the next instructions off the quantum."""
    op_reg(1, 0x81, 5, LEFT)
    word32(0)
    cursor().site = here()


@native
def t_jal(s: Slot, length: int) -> None:
    a = cursor()
    a.count += 1
    if s.rd != SINK:
        d = result(s.rd)
        load_constant(d, a.pc + length)
        finish(s.rd, d)
    go(a.pc + sext32(s.imm))


@native
def t_jalr(s: Slot, length: int) -> None:
    a = cursor()
    a.count += 1
    effective_address(s)
    immediate(1, 4, RAX, (1 << 64) - 2)
    if s.rd != SINK:
        d = result(s.rd)
        if d == RAX:
            load_constant(RCX, a.pc + length)
            put(s.rd, RCX)
        else:
            load_constant(d, a.pc + length)
    probe_jumps()


# Steps


@native
def t_step(number: int, word: int, length: int) -> None:
    """Have the interpreter's handler execute this one instruction."""
    a = cursor()
    slot = step_slot(number, word)
    if number != NO_ROW and KIND[number] == K_LR:
        begin_window(slot, number)
    call_step(slot, a.call_step)
    a.count += 1


# Blocks


@native
def enough_room() -> int:
    """Whether another block fits into the cache."""
    t = CodeTable.at(CODE_TABLE)
    return t.asm.out + BLOCK_ROOM < t.end and STEPS + (t.slots_used + MAX_INSTRUCTIONS) * STEP_BYTES < t.steps_end


@native
def check_alarm() -> int:
    """The look at the alarm, ALARM_CHECK bytes; gives the jump taken when it rings."""
    op_mem(1, 0x8B, RAX, HART, ALARM)
    op_mem(0, 0x83, 7, RAX, 0)
    byte(0)
    return jump_if(NOT_EQUAL)


@native
def begin_block() -> None:
    """The checks at a block's entry, and its first segment."""
    add_stub(LEAVE, check_alarm(), cursor().pc, 1)
    begin_segment()
    add_stub(LEAVE, jump_if(SIGN), cursor().pc, 0)


@native
def one(word: int, length: int) -> int:
    """Translate one instruction; gives 1 when it ends the block."""
    a = cursor()
    a.length = length
    number = find_row(word)
    a.word = word
    a.number = number
    a.declined = 0
    a.ended = 0
    if a.site == 0:
        begin_segment()
        if Machine.at(MACHINE).check:
            add_stub(LEAVE, jump_if(SIGN), a.pc, 0)  # smp/check.py counts on the quantum
    if number == NO_ROW:
        t_step(number, word, length)
        return 1
    s = a.decoded
    put_operands(number, word, ref(a.decoded))
    kind = KIND[number]
    if kind == K_BRANCH:
        if a.text < a.window_end:
            t_window_branch(s, number)
            return 0
        return t_branch(s, number, length)
    if kind == K_JAL:
        t_jal(s, length)
        return 1
    if kind == K_JALR:
        t_jalr(s, length)
        return 1
    if TEMPLATE[number] == STEP_TEMPLATE:
        a.declined = 1
    elif not (PURE[number] and s.rd == SINK):
        apply_template(TEMPLATE[number], s, OP[number], EXTRA[number])
    if a.declined:
        t_step(number, word, length)
    else:
        a.count += 1
    return a.ended


@native
def is_lr(word: int) -> int:
    number = find_row(word)
    return number != NO_ROW and KIND[number] == K_LR


@native
def translate_block(ppc: int, vpc: int, version: int) -> int:
    """Translate the block that begins here and enter it into the table; 0 when it can't be.  Under the lock.

    AGAIN when the cache is full.
    """
    if not enough_room():
        return AGAIN
    align_code()
    code = translate_some(ppc, vpc, version, MAX_INSTRUCTIONS)
    if code:
        t = CodeTable.at(CODE_TABLE)
        t.blocks_made += 1
        t.instructions += t.asm.count
        t.used = t.asm.out - CODE
        enter_block(ppc, vpc, version, code)
    return code


@native
def align_code() -> None:
    while here() & 15:
        byte(0x90)


@native
def translate_some(ppc: int, vpc: int, version: int, limit: int) -> int:
    """Code of a block of at most `limit` instructions; 0 when not even one can be translated."""
    a = cursor()
    a.start = here()
    a.pc = vpc
    a.page = ppc & ~0xFFF
    a.text = text_of(ppc)
    a.count = 0
    a.limit = limit
    a.stubs = 0
    a.window_end = 0
    a.fused = 0
    a.first_pc = vpc
    a.version = version
    a.segment = 0
    a.begun = 0
    a.fp_ready = 0
    a.boxed = 0
    begin_block()
    if not translate_body():
        a.out = a.start
        return 0
    if a.site:
        end_segment()
    emit_stubs()
    return a.start


@native
def translate_body() -> int:
    """All instructions of the block; 0 when not even the first can be translated (it crosses the page)."""
    a = cursor()
    while True:
        word = word_at(a.text)
        length = length_of(word)
        if a.text & 0xFFF == 0xFFE and length == 4:
            break
        # An LR begins a block of its own, so that its sequence lies in one with it, and in no other.
        if a.count and is_lr(word):
            break
        if one(word, length):
            return 1
        a.pc += length
        a.text += length
        if a.text & 0xFFF == 0 or a.count >= a.limit:
            break
    if a.count == 0:
        return 0
    # `go` compares pages with the last instruction's.
    next_pc = a.pc
    a.pc -= 2
    go(next_pc)
    return 1


@native
def not_run(stub: Stub) -> int:
    """Instructions that the segment took off the quantum and that have not run, the stub's included."""
    return cursor().taken[stub.segment] - stub.before


@native
def emit_stubs() -> None:
    """The rare paths, behind the block."""
    a = cursor()
    for index in range(a.stubs):
        stub = a.stub[index]
        if stub.kind != FIX:
            aim(stub.site, here())
        match stub.kind:
            case 0:
                emit_link(stub)
            case 1:
                load_constant(RAX, stub.pc)
                probe_jumps()
            case 2:
                if stub.info == 0:
                    immediate(1, 0, LEFT, not_run(stub))
                load_constant(RAX, stub.pc)
                jump_to(a.leave)
            case 3:
                emit_access(stub)
            case 4:
                at = stub.site - 4 + CODE_ALIAS
                store32(at, load32(at) | not_run(stub) << 16)
            case 5:
                call_handler(stub)
                go_back(stub)
            case 6:
                emit_soft(stub)
            case 7:
                emit_straying(stub)


@native
def emit_link(stub: Stub) -> None:
    """A jump to a block of the same page that does not exist yet: patched once it does."""
    load_constant(RAX, stub.pc)
    load_constant(RCX, stub.site)
    load_constant(RDX, cursor().page | stub.info)
    jump_to(cursor().exit_link)


@native
def emit_straying(stub: Stub) -> None:
    """A branch out of a constrained sequence was taken."""
    leave_window(stub.info)
    if same_page(stub.pc):
        align_jump(1)
        stub.site = jump()
        aim(stub.site, here())
        emit_link(stub)
    else:
        load_constant(RAX, stub.pc)
        probe_jumps()


@native
def emit_access(stub: Stub) -> None:
    """A load or store that missed the TLB; `access` wants its address in rax."""
    where = stub.info >> 16
    if where != RAX:
        op_reg(1, 0x8B, RAX, where)
    load_constant(RDX, stub.pc)
    load_constant(RCX, stub.info & 0xFFFF | not_run(stub) << 16)
    call_piece(cursor().call_access)
    go_back(stub)


@native
def go_back(stub: Stub) -> None:
    """On in the block: what was called has used the floating-point registers."""
    if stub.fp:
        call_piece(cursor().load_fp)
    jump_to(stub.back)


@native
def call_handler(stub: Stub) -> None:
    """The interpreter's handler executes an instruction that its template can't finish."""
    if stub.more:
        aim(stub.more, here())
    load_constant(RAX, stub.info)
    load_constant(RDX, stub.pc)
    load_constant(RCX, length_of(Slot.at(stub.info + 48).imm) | not_run(stub) << 16)
    call_piece(cursor().call_step)


@native
def emit_soft(stub: Stub) -> None:
    """A block's first floating-point instruction whose registers are not loaded, or that can't be done here.

    The handler executes the latter and the block is left behind it, for what follows may be no code for it either.
    """
    op_mem(0, 0x83, 7, HART, FP_INLINE)
    byte(FP_ALLOWED)
    soft = jump_if(LESS)
    call_piece(cursor().load_fp)
    jump_to(stub.back)
    aim(soft, here())
    call_handler(stub)
    immediate(1, 0, LEFT, not_run(stub) - 1)
    load_constant(RAX, stub.pc + length_of(Slot.at(stub.info + 48).imm))
    probe_jumps()


# The fixed pieces


@native
def save_pinned(load: int) -> None:
    """Store the pinned guest registers to the record (0x89), or load them (0x8B)."""
    for guest in range(32):
        if PIN[guest] != IN_MEMORY:
            op_mem(1, 0x8B if load else 0x89, PIN[guest], HART, guest * 8)


@native
def load_pinned_fp() -> None:
    """Load the floating-point registers that live in host registers; what is written is always stored too."""
    for guest in range(32):
        if F_PIN[guest] != IN_MEMORY:
            vex_mem(LOAD_DOUBLE, F_PIN[guest], 0, HART, F + guest * 8)
    op_mem(0, 0x83, 1, HART, FP_INLINE)
    byte(FP_LOADED)
    byte(0xC3)


@native
def push_all() -> None:
    for host in range(16):
        if host in (RBX, RBP, 12, 13, 14, 15):
            if host >> 3:
                byte(0x41)
            byte(0x50 | host & 7)
    immediate_rsp(5)


@native
def immediate_rsp(digit: int) -> None:
    """add (0) or sub (5) rsp, 8."""
    op_reg(1, 0x83, digit, RSP)
    byte(8)


@native
def pop_all() -> None:
    """Undo push_all and return."""
    immediate_rsp(0)
    for i in range(16):
        host = 15 - i
        if host in (RBX, RBP, 12, 13, 14, 15):
            if host >> 3:
                byte(0x41)
            byte(0x58 | host & 7)
    byte(0xC3)


@native
def make_call(function: int) -> int:
    """Code that calls a native with (hart, rax, rdx, rcx), and goes where it says (smp/translated.py:GO_ON)."""
    a = cursor()
    start = here()
    save_pinned(0)
    store_mxcsr(MXCSR)
    op_mem(1, 0x89, LEFT, HART, LEFT_FIELD)
    op_reg(1, 0x8B, RDI, HART)
    op_reg(1, 0x8B, RSI, RAX)
    immediate_rsp(5)
    load_constant(RAX, function)
    op_reg(0, 0xFF, 2, RAX)
    immediate_rsp(0)
    op_mem(1, 0x8B, LEFT, HART, LEFT_FIELD)
    op_reg(0, 0x85, RAX, RAX)
    out = jump_if(NOT_EQUAL)
    load_mxcsr(MXCSR)
    op_mem(0, 0x83, 4, HART, FP_INLINE)
    byte(FP_ALLOWED)
    save_pinned(1)
    byte(0xC3)
    aim(out, here())
    immediate_rsp(0)
    immediate(0, 7, RAX, LEAVE_CODE)
    aim(jump_if(EQUAL), a.bare_exit)
    load_mxcsr(MXCSR)
    op_mem(0, 0x83, 4, HART, FP_INLINE)
    byte(FP_ALLOWED)
    save_pinned(1)
    op_mem(1, 0x8B, RAX, HART, PC_FIELD)
    probe_jumps()
    return start


@native
def prepare_cache(code_bytes: int) -> None:
    """Put the fixed pieces at the start of a cache of this size; once, by the supervisor."""
    t = CodeTable.at(CODE_TABLE)
    t.end = CODE + code_bytes
    t.steps_end = STEPS + code_bytes // STEPS_SHARE
    entries = BUCKETS
    while entries * CODE_PER_ENTRY > code_bytes:
        entries >>= 1
    t.bucket_mask = entries - 1
    t.slots_used = FIRST_STEP
    a = t.asm
    a.out = CODE
    a.enter = here()
    push_all()
    op_reg(1, 0x8B, HART, RDI)
    op_reg(1, 0x8B, RAX, RSI)
    op_mem(1, 0x8B, LEFT, HART, LEFT_FIELD)
    save_pinned(1)
    store_mxcsr(HOST_MXCSR)
    load_mxcsr(MXCSR)
    op_reg(0, 0xFF, 4, RAX)
    a.exit_link = here()
    op_mem(1, 0x89, RCX, HART, LINK_FIELD)
    op_mem(1, 0x89, RDX, HART, LINK_PAGE)
    linked = jump()
    a.exit = here()
    op_mem(1, 0xC7, 0, HART, LINK_FIELD)
    word32(1)
    aim(linked, here())
    a.leave = here()
    op_mem(1, 0x89, RAX, HART, PC_FIELD)
    op_mem(1, 0x89, LEFT, HART, LEFT_FIELD)
    save_pinned(0)
    store_mxcsr(MXCSR)
    a.bare_exit = here()
    load_mxcsr(HOST_MXCSR)
    pop_all()
    a.call_access = make_call(address_of(0))
    a.call_step = make_call(address_of(1))
    a.load_fp = here()
    load_pinned_fp()
    for n in range(SYSTEM_CALLS):
        a.call_system[n] = make_call(address_of(2 + n))
    a.call_admit = make_call(address_of(2 + SYSTEM_CALLS))
    t.begin = here()


CALLED = (access, step_one, *SYSTEM_CALLED, admit)
SYSTEM_CALLS = len(SYSTEM_CALLED)


@emitted
def address_of(which: int) -> int:
    """Host address of a native that translated code calls."""

    def arm(n: int) -> V:
        return V(builder().ptrtoint(unit().function(CALLED[n]), I64))

    return emit_switch(which, len(CALLED), arm)  # type: ignore[arg-type, return-value]
