"""Shared memory between processes of one host: an engine's regions lie in one anonymous file, which peers map.

The file is a memfd: it has no name, and goes when the last process that maps it goes, `kill -9` included. A peer
opens it through `/proc/<pid>/fd/<fd>`, which the kernel grants to processes of the same user, and can only read:
the file is sealed against new writable mappings. It is one-sided, so the owner's guard is not asked; `transport.base`
says what a reader does instead.

For writes it is the consumer that has the files, one for each image (`_image.py`), and the producer that maps them.
"""

from isthmus.transport.shm._importer import ShmImporter
from isthmus.transport.shm._memory import SharedMemory, ShmExporter, host_identity
from isthmus.transport.shm._reader import ShmReader
from isthmus.transport.shm._writer import ShmWriter

__all__ = ["SharedMemory", "ShmExporter", "ShmImporter", "ShmReader", "ShmWriter", "host_identity"]
