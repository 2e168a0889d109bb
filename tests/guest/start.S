/* Entry, the M-mode trap vector and the switch to a lower privilege. C side: runtime.c, guest.h. */

#include "layout.h"

    .section .text.start, "ax"
    .globl _start
_start:
    csrw mie, zero
    csrr s0, mhartid
    bne s0, a0, wrong_hartid
    li t0, MAX_HARTS
    bgeu s0, t0, park
    mv s1, a1

    /* Hart records are an array; mscratch holds this hart's own outside its trap handler. */
    la t0, harts
    li t1, HART_SIZE
    mul t2, s0, t1
    add s2, t0, t2
    la t0, stacks
    addi t1, s0, 1
    slli t1, t1, STACK_SHIFT
    add sp, t0, t1

    bnez s0, wait_for_bss
    la t0, __bss_start
    la t1, __bss_end
1:  sd zero, 0(t0)
    addi t0, t0, 8
    bltu t0, t1, 1b
    /* The cleared bss before the flag that lets the others use it. */
    fence rw, w
    la t0, bss_cleared
    li t1, 1
    sw t1, 0(t0)
wait_for_bss:
    la t0, bss_cleared
1:  lw t1, 0(t0)
    beqz t1, 1b
    fence r, rw

    csrw mscratch, s2
    la t0, trap_vector
    csrw mtvec, t0
    li t0, 0x6000
    csrs mstatus, t0
    csrw fcsr, zero
    mv a0, s0
    mv a1, s1
    mv a2, s2
    call runtime_main
park:
    wfi
    j park

wrong_hartid:
    li a0, 254
    j fail_now

    .globl fail_now
fail_now:
    slli a0, a0, 16
    li t0, 0x3333
    or a0, a0, t0
    li t0, FINISHER
    sw a0, 0(t0)
    j park

    .data
    .balign 4
bss_cleared: .word 0

    .section .stacks, "aw", @nobits
    .balign 4096
stacks: .skip MAX_HARTS << STACK_SHIFT

    .text
/* struct trap *enter(prv << 11, pc, a0, a1): run the code at pc in the given privilege until something traps to
   M-mode, and return what that was. MPIE and the other mstatus bits stay as they are. */
    .globl enter
enter:
    csrr t0, mscratch
    sd ra, (SAVED + 0 * 8)(t0)
    sd sp, (SAVED + 1 * 8)(t0)
    sd gp, (SAVED + 2 * 8)(t0)
    sd tp, (SAVED + 3 * 8)(t0)
    sd s0, (SAVED + 4 * 8)(t0)
    sd s1, (SAVED + 5 * 8)(t0)
    sd s2, (SAVED + 6 * 8)(t0)
    sd s3, (SAVED + 7 * 8)(t0)
    sd s4, (SAVED + 8 * 8)(t0)
    sd s5, (SAVED + 9 * 8)(t0)
    sd s6, (SAVED + 10 * 8)(t0)
    sd s7, (SAVED + 11 * 8)(t0)
    sd s8, (SAVED + 12 * 8)(t0)
    sd s9, (SAVED + 13 * 8)(t0)
    sd s10, (SAVED + 14 * 8)(t0)
    sd s11, (SAVED + 15 * 8)(t0)
    li t1, 1
    sd t1, ENTERED(t0)
    li t1, 3 << 11
    csrc mstatus, t1
    csrs mstatus, a0
    csrw mepc, a1
    mv a0, a2
    mv a1, a3
    mret

    .balign 4
    .globl trap_vector
trap_vector:
    csrrw tp, mscratch, tp
    sd ra, (REGS + 1 * 8)(tp)
    sd sp, (REGS + 2 * 8)(tp)
    sd gp, (REGS + 3 * 8)(tp)
    sd t0, (REGS + 5 * 8)(tp)
    csrrw t0, mscratch, tp
    sd t0, (REGS + 4 * 8)(tp)
    .irp n, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    sd x\n, (REGS + \n * 8)(tp)
    .endr
    csrr t0, mcause
    sd t0, CAUSE(tp)
    csrr t0, mepc
    sd t0, EPC(tp)
    csrr t0, mtval
    sd t0, TVAL(tp)
    csrr t0, mstatus
    sd t0, STATUS(tp)
    ld t0, HANDLER(tp)
    beqz t0, leave
    /* An own stack: the interrupted code may run with any sp. */
    ld sp, TRAP_SP(tp)
    mv a0, tp
    jalr t0
    csrr tp, mscratch
    beqz a0, leave
    ld t0, EPC(tp)
    csrw mepc, t0
    .irp n, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ld x\n, (REGS + \n * 8)(tp)
    .endr
    ld tp, (REGS + 4 * 8)(tp)
    mret

leave:
    ld t0, ENTERED(tp)
    beqz t0, unexpected
    sd zero, ENTERED(tp)
    /* The handler left MIE clear, where enter() may have been called with it set: callers set it again. */
    mv a0, tp
    ld ra, (SAVED + 0 * 8)(a0)
    ld sp, (SAVED + 1 * 8)(a0)
    ld gp, (SAVED + 2 * 8)(a0)
    ld s0, (SAVED + 4 * 8)(a0)
    ld s1, (SAVED + 5 * 8)(a0)
    ld s2, (SAVED + 6 * 8)(a0)
    ld s3, (SAVED + 7 * 8)(a0)
    ld s4, (SAVED + 8 * 8)(a0)
    ld s5, (SAVED + 9 * 8)(a0)
    ld s6, (SAVED + 10 * 8)(a0)
    ld s7, (SAVED + 11 * 8)(a0)
    ld s8, (SAVED + 12 * 8)(a0)
    ld s9, (SAVED + 13 * 8)(a0)
    ld s10, (SAVED + 14 * 8)(a0)
    ld s11, (SAVED + 15 * 8)(a0)
    ld tp, (SAVED + 3 * 8)(a0)
    /* struct hart begins with its struct trap. */
    ret

unexpected:
    ld sp, TRAP_SP(tp)
    mv a0, tp
    call unexpected_trap
    j park
