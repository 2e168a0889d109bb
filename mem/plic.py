"""PLIC: wired interrupts of devices, routed to harts (RISC-V PLIC specification 1.0.0; register map of SiFive's).

Whoever changes something, a hart or the I/O process, takes the one lock and drives the external-interrupt lines of
the contexts concerned in the same breath.  Hart h has context 2h for M-mode and 2h+1 for S-mode.

Two choices where implementations differ, both as the specification has them: a request stays pending when its
device lowers the level before the claim ("Interrupt Gateways"), and a claim does not look at the threshold
("Interrupt Claim Process").
"""

from mem import memmap, regions
from mem.atomics import spin_lock, spin_unlock
from mem.layout import Layout, layout, many, u8, u32, u64
from mem.machine import Machine
from mem.mailbox import MEIP, SEIP, clear_pending, raise_pending
from mem.native import native, ref
from mem.word import ctz

SOURCES = memmap.PLIC_SOURCES
WORDS = SOURCES // 32
CONTEXTS = 2 * regions.MAX_HARTS
ENABLER_WORDS = CONTEXTS // 64
PRIORITY_MASK = THRESHOLD_MASK = 7

PENDING_BASE = 0x1000
ENABLE_BASE, ENABLE_STRIDE = 0x2000, 0x80
CONTEXT_BASE, CONTEXT_STRIDE = 0x20_0000, 0x1000
THRESHOLD, CLAIM = 0, 4  # in a context's page


@layout
class Plic(Layout):
    """All under `lock`; bit n of a word list is source n, `enable` has WORDS words for each context."""

    lock: u32
    pending: list[u32] = many(WORDS)  # requests that nobody has claimed
    claimed: list[u32] = many(WORDS)  # in service: the gateway lets no second request through
    level: list[u32] = many(WORDS)  # what the devices drive
    priority: list[u8] = many(SOURCES)
    threshold: list[u8] = many(CONTEXTS)
    line: list[u8] = many(CONTEXTS)  # what we drive: 1 when the context's external interrupt is up
    enable: list[u32] = many(CONTEXTS * WORDS)
    enablers: list[u64] = many(SOURCES * ENABLER_WORDS)  # `enable` transposed: a source's contexts


assert regions.PLIC + Plic.sizeof() <= regions.UART


@native(inline=True)
def bit_of(source: int) -> int:
    """The source's bit in its word."""
    return 1 << (source & 31)


@native
def plic_best(plic: Plic, context: int) -> int:
    """The enabled request with the highest priority, the lowest source among equals; 0 when there is none."""
    best = 0
    highest = 0
    for word in range(WORDS):
        ready = plic.pending[word] & plic.enable[context * WORDS + word]
        while ready:
            source = word * 32 + ctz(ready)
            if plic.priority[source] > highest:
                best = source
                highest = plic.priority[source]
            ready &= ready - 1
    return best


@native
def update_context(plic: Plic, context: int) -> None:
    """Drive the context's line as its requests and its threshold ask."""
    level = plic.priority[plic_best(plic, context)] > plic.threshold[context]
    if level == plic.line[context]:
        return
    plic.line[context] = level
    bit = SEIP if context & 1 else MEIP
    if level:
        raise_pending(context >> 1, bit)
    else:
        clear_pending(context >> 1, bit)


@native
def update_source(plic: Plic, source: int) -> None:
    """Drive the lines of the contexts that have the source enabled: nobody else can notice it."""
    for word in range(ENABLER_WORDS):
        contexts = plic.enablers[source * ENABLER_WORDS + word]
        while contexts:
            update_context(plic, word * 64 + ctz(contexts))
            contexts &= contexts - 1


@native
def plic_set_level(source: int, level: int) -> None:
    """A device drives its line high or low; any process may call it."""
    plic = Plic.at(regions.PLIC)
    word = source >> 5
    spin_lock(ref(plic.lock))
    if level:
        plic.level[word] |= bit_of(source)
        if (plic.claimed[word] | plic.pending[word]) & bit_of(source) == 0:
            plic.pending[word] |= bit_of(source)
            update_source(plic, source)
    else:
        plic.level[word] &= ~bit_of(source)
    spin_unlock(ref(plic.lock))


@native
def plic_claim(context: int) -> int:
    """Take the context's best request into service; gives its source or 0."""
    plic = Plic.at(regions.PLIC)
    spin_lock(ref(plic.lock))
    source = plic_best(plic, context)
    if source:
        plic.pending[source >> 5] &= ~bit_of(source)
        plic.claimed[source >> 5] |= bit_of(source)
        update_source(plic, source)
    spin_unlock(ref(plic.lock))
    return source


@native
def plic_complete(context: int, source: int) -> None:
    """End a service; a level that is still high is a new request.

    A source that is not enabled for the context is ignored ("Interrupt Completion").
    """
    plic = Plic.at(regions.PLIC)
    if source >= SOURCES:
        return
    word = source >> 5
    spin_lock(ref(plic.lock))
    if plic.enable[context * WORDS + word] & plic.claimed[word] & bit_of(source):
        plic.claimed[word] &= ~bit_of(source)
        plic.pending[word] |= plic.level[word] & bit_of(source)
        update_source(plic, source)
    spin_unlock(ref(plic.lock))


@native
def set_enable(context: int, word: int, value: int) -> None:
    """Write 32 enable bits of a context; source 0 has none."""
    plic = Plic.at(regions.PLIC)
    index = context * WORDS + word
    value &= 0xFFFFFFFF if word else 0xFFFFFFFE
    spin_lock(ref(plic.lock))
    changed = plic.enable[index] ^ value
    plic.enable[index] = value
    while changed:
        source = word * 32 + ctz(changed)
        plic.enablers[source * ENABLER_WORDS + (context >> 6)] ^= 1 << (context & 63)
        changed &= changed - 1
    update_context(plic, context)
    spin_unlock(ref(plic.lock))


@native
def set_threshold(context: int, value: int) -> None:
    """Only priorities above the threshold interrupt."""
    plic = Plic.at(regions.PLIC)
    spin_lock(ref(plic.lock))
    plic.threshold[context] = value & THRESHOLD_MASK
    update_context(plic, context)
    spin_unlock(ref(plic.lock))


@native
def set_priority(source: int, value: int) -> None:
    """Priority 0 never interrupts; source 0 has no other."""
    plic = Plic.at(regions.PLIC)
    if source == 0 or source >= SOURCES:
        return
    spin_lock(ref(plic.lock))
    plic.priority[source] = value & PRIORITY_MASK
    update_source(plic, source)
    spin_unlock(ref(plic.lock))


@native
def plic_has(context: int) -> int:
    """Whether the context belongs to a hart of this machine."""
    return context < 2 * Machine.at(regions.MACHINE).harts


@native
def plic_read(offset: int) -> int:
    """What an aligned load of 4 bytes gets; 0 where no register is."""
    plic = Plic.at(regions.PLIC)
    if offset >= CONTEXT_BASE:
        return read_context((offset - CONTEXT_BASE) // CONTEXT_STRIDE, offset % CONTEXT_STRIDE)
    if offset >= ENABLE_BASE:
        context = (offset - ENABLE_BASE) // ENABLE_STRIDE
        word = offset % ENABLE_STRIDE >> 2
        return plic.enable[context * WORDS + word] if word < WORDS and plic_has(context) else 0
    if offset >= PENDING_BASE:
        word = (offset - PENDING_BASE) >> 2
        return plic.pending[word] if word < WORDS else 0
    return plic.priority[offset >> 2] if offset >> 2 < SOURCES else 0


@native
def read_context(context: int, register: int) -> int:
    """A load from a context's page: threshold or claim."""
    if not plic_has(context):
        return 0
    if register == CLAIM:
        return plic_claim(context)
    return Plic.at(regions.PLIC).threshold[context] if register == THRESHOLD else 0


@native
def plic_write(offset: int, value: int) -> None:
    """An aligned store of 4 bytes; without effect where no register is, and on pending bits."""
    if offset >= CONTEXT_BASE:
        write_context((offset - CONTEXT_BASE) // CONTEXT_STRIDE, offset % CONTEXT_STRIDE, value & 0xFFFFFFFF)
    elif offset >= ENABLE_BASE:
        context = (offset - ENABLE_BASE) // ENABLE_STRIDE
        word = offset % ENABLE_STRIDE >> 2
        if word < WORDS and plic_has(context):
            set_enable(context, word, value)
    elif offset < PENDING_BASE:
        set_priority(offset >> 2, value)


@native
def write_context(context: int, register: int, value: int) -> None:
    """A store to a context's page: threshold or completion."""
    if not plic_has(context):
        return
    if register == CLAIM:
        plic_complete(context, value)
    elif register == THRESHOLD:
        set_threshold(context, value)
