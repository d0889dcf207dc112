"""Blocks over TCP: a server that asks the guard and sends, a reader that receives straight into the staging buffer.

    reader ── Hello ──►  server        who I am, and whom I believe you to be
           ◄─ Welcome ──               or Refusal, and the connection ends
           ── ReadBlocks ──►           again and again, one at a time
           ◄─ Granted, bytes ──        or Refusal, and the connection lives on

    writer ── Hello ──►  importer      as above
           ── WriteBlocks ──►          again and again, one at a time
           ◄─ Ready ──                 or Refusal, and the connection lives on
           ── bytes ──►
           ◄─ Written ──

Given a `Tls`, both ends prove their names, and all bytes are encrypted. Without one this is for loopback and isolated
networks: what a peer says it is, is checked against the registry's word but not proven. The server listens on loopback
unless told an address.
"""

from isthmus.transport.tcp._exporter import TcpExporter
from isthmus.transport.tcp._importer import TcpImporter
from isthmus.transport.tcp._reader import TcpReader
from isthmus.transport.tcp._writer import TcpWriter

__all__ = ["TcpExporter", "TcpImporter", "TcpReader", "TcpWriter"]
