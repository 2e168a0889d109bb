# Bare metal: ends the machine at its first instructions, through the test device. What is left is start and end.
        li      t0, 0x100000
        li      t1, 0x5555
        sw      t1, (t0)
1:      wfi
        j       1b
