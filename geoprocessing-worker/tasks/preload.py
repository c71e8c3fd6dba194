"""What the fork server imports before it makes its first child, and nobody else ever does.

Its children are then born with the libraries in memory: about 5 ms instead of the 350 ms of a new interpreter.
"""

import gc
import signal

from geoprocessing_worker.sandbox import landlock, libc, limits
from geoprocessing_worker.tasks import png

# glibc's own choice gives each large array back to the kernel and each thread a heap: the same pages are then zeroed
# over and over. Kept in one heap they cost a child 5 to 12 % less processor time, and no more memory.
KEEP_MEMORY = {  # mallopt(3)
    -8: 1,  # M_ARENA_MAX
    -3: 32 << 20,  # M_MMAP_THRESHOLD, the most that it may be
    -1: 512 << 20,  # M_TRIM_THRESHOLD
}

# A signal to the worker's whole control group must not take running jobs with it: the worker decides about them, and
# the fork server ends with the worker.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

# A fork server lives for as long as any child, and a child for as long as its fork server: only the kernel's word that
# the worker is dead ends both.
libc.die_with_parent()

for option, value in KEEP_MEMORY.items():
    libc.set_malloc_option(option, value)

png.preload()
landlock.prepare()
limits.max_tasks()

# What is frozen is not looked through, so that a child's collector neither reads nor copies the pages of all modules:
# 3 ms less for each child.
gc.collect()
gc.freeze()
