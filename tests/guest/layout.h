/* What the assembly and the C side both rely on; runtime.c asserts the offsets. */
#define MAX_HARTS 128
#define STACK_SHIFT 13
#define TRAP_STACK 2048

#define REGS 0
#define CAUSE 256
#define EPC 264
#define TVAL 272
#define STATUS 280
#define SAVED 288
#define ENTERED 416
#define HANDLER 424
#define TRAP_SP 432
#define HART_SIZE 512

#define FINISHER 0x100000
#define RTC 0x101000
#define CLINT 0x2000000
#define PLIC 0xc000000
#define UART 0x10000000
