"""Every bound in one place. Biggest word first, unit in the name. A loop, queue or buffer names its bound here."""

from isthmus.core.units import GIB, KIB, MIB

__all__ = [
    "BLOCKS_PER_POOL_MAX",
    "BLOCK_SIZE_TOKENS_MAX",
    "CALLS_IN_FLIGHT_MAX",
    "CALL_BYTES_IN_FLIGHT_MAX",
    "CERTIFICATE_BYTES_MAX",
    "CHANNELS_PER_PEER_MAX",
    "COMPONENTS_MAX",
    "CONNECTIONS_PER_EXPORTER_MAX",
    "CONNECTIONS_PER_PEER_MAX",
    "CONNECTION_SILENCE_SECONDS_MAX",
    "CONTROL_FRAME_BYTES_MAX",
    "COPY_CHUNK_BYTES",
    "FILE_WRITES_QUEUED_BYTES_MAX",
    "FORMS_REMEMBERED_MAX",
    "FORM_BYTES_REMEMBERED_MAX",
    "FRAME_MS_MAX",
    "GRANTS_PER_PEER_MAX",
    "GRANTS_PER_WORKER_MAX",
    "HANDOFFS_LOGGED_MAX",
    "HANDOFFS_REMEMBERED_MAX",
    "HANDOFFS_SHOWN_MAX",
    "HEADS_MAX",
    "HEAD_SIZE_MAX",
    "HELLO_BYTES_MAX",
    "HELLO_MS_MAX",
    "HOST_TO_FILES_MS_MAX",
    "HTTP_BODY_BYTES_MAX",
    "INCARNATIONS_LOST_MAX",
    "INDEX_ENTRIES_MAX",
    "INDEX_PAYLOAD_BYTES_MAX",
    "JOURNAL_FILES_PER_LIFE_MAX",
    "JOURNAL_FILE_BYTES_MAX",
    "LAYERS_MAX",
    "LAYER_GROUPS_MAX",
    "MANIFEST_BYTES_MAX",
    "MESSAGES_PER_CHAT_MAX",
    "MODEL_WALK_MOVES_MAX",
    "MOMENTS_PER_HANDOFF_MAX",
    "NAME_CHARS_MAX",
    "OFFER_BYTES_MAX",
    "PAGE_BYTES_MAX",
    "POOL_BYTES_MAX",
    "PP_SIZE_MAX",
    "PROCESSES_WATCHED_MAX",
    "READS_PER_EXPORTER_MAX",
    "READ_MS_MAX",
    "REGIONS_MAX",
    "REQUESTS_IN_FLIGHT_MAX",
    "SHM_HEADER_BYTES",
    "SIMULATED_CALLBACKS_MAX",
    "STOP_STRINGS_MAX",
    "STOP_STRING_CHARS_MAX",
    "TCP_CHUNK_BYTES",
    "TENANTS_PER_POOL_MAX",
    "TENANTS_REMEMBERED_MAX",
    "TOKENS_PER_REQUEST_MAX",
    "TOKENS_PER_STATE_MAX",
    "TOMBSTONES_MAX",
    "TP_SIZE_MAX",
    "WORKERS_MAX",
    "WRITE_BUFFER_BYTES_MAX",
    "WRITE_MS_MAX",
    "YAML_BYTES_MAX",
    "YAML_DEPTH_MAX",
    "YAML_NODES_MAX",
]

# shapes
LAYERS_MAX = 512
LAYER_GROUPS_MAX = 64
HEADS_MAX = 1024
HEAD_SIZE_MAX = 4096
TP_SIZE_MAX = 64
PP_SIZE_MAX = 64
COMPONENTS_MAX = 8
PAGE_BYTES_MAX = 1 * GIB
TOKENS_PER_STATE_MAX = 1 << 16
BLOCK_SIZE_TOKENS_MAX = 4096
BLOCKS_PER_POOL_MAX = 1 << 24
POOL_BYTES_MAX = 4096 * GIB
REGIONS_MAX = 4 * TP_SIZE_MAX
TOKENS_PER_REQUEST_MAX = 1 << 20

# the wire
CONTROL_FRAME_BYTES_MAX = 64 * KIB
# An id takes at most 5 bytes: the largest prompt, and its block ids at one token a block, must fit.
MANIFEST_BYTES_MAX = 5 * TOKENS_PER_REQUEST_MAX + 1 * MIB
OFFER_BYTES_MAX = MANIFEST_BYTES_MAX + 1 * MIB  # a manifest, or a prompt's token ids, and what goes with them
FORMS_REMEMBERED_MAX = 256  # identities and representations that were looked at before, ours and peers'
FORM_BYTES_REMEMBERED_MAX = 16 * KIB  # of one, as it was sent; a larger one is parsed each time
CALLS_IN_FLIGHT_MAX = 4096  # per channel and direction
CALL_BYTES_IN_FLIGHT_MAX = 256 * MIB  # of frames whose calls are under way, per channel
CHANNELS_PER_PEER_MAX = 4  # one is used; those before it may not have closed yet
HELLO_BYTES_MAX = 1 * MIB  # of any frame from a peer that has not said who it is
HELLO_MS_MAX = 10_000  # from a connection to who it is, on the control and peer ports
WRITE_BUFFER_BYTES_MAX = 64 * MIB  # per channel; a peer that reads slower than this is cut off
NAME_CHARS_MAX = 256

# files that people write
CERTIFICATE_BYTES_MAX = 64 * KIB
YAML_BYTES_MAX = 1 * MIB
YAML_DEPTH_MAX = 64
YAML_NODES_MAX = 1 << 18  # with aliases written out

# serving
HTTP_BODY_BYTES_MAX = 8 * MIB
MESSAGES_PER_CHAT_MAX = 1024
STOP_STRINGS_MAX = 4  # as the OpenAI API
STOP_STRING_CHARS_MAX = 256
REQUESTS_IN_FLIGHT_MAX = 1024
WORKERS_MAX = 256
PROCESSES_WATCHED_MAX = 4 * WORKERS_MAX  # a descriptor each

# ownership
GRANTS_PER_WORKER_MAX = 16_384
GRANTS_PER_PEER_MAX = GRANTS_PER_WORKER_MAX // 4  # as many as a peer may have calls under way
TOMBSTONES_MAX = 16_384
TENANTS_PER_POOL_MAX = 1024  # with quotas of their own
TENANTS_REMEMBERED_MAX = 4096  # served while others wait
INCARNATIONS_LOST_MAX = 16 * WORKERS_MAX
FILE_WRITES_QUEUED_BYTES_MAX = 64 * MIB  # blocks on their way from memory to files
HOST_TO_FILES_MS_MAX = 5_000  # at a worker's end, which its launcher waits twice as long for
INDEX_ENTRIES_MAX = 1 << 20
INDEX_PAYLOAD_BYTES_MAX = 1 * GIB  # one payload is read whole, to be checked before any of it is used
JOURNAL_FILE_BYTES_MAX = 64 * MIB
JOURNAL_FILES_PER_LIFE_MAX = 16  # the oldest goes first

# what people look at, not what the protocol needs
HANDOFFS_REMEMBERED_MAX = 4096  # installed, by the gateway
HANDOFFS_LOGGED_MAX = 256  # ended, with their timelines, by each worker
HANDOFFS_SHOWN_MAX = 512  # of one worker, in one answer
MOMENTS_PER_HANDOFF_MAX = 64

# transport
COPY_CHUNK_BYTES = 4 * MIB  # a copy looks up between chunks, to see whether it was cancelled or its owner has died
TCP_CHUNK_BYTES = 1 * MIB  # two of these are what one read costs the side that serves it
SHM_HEADER_BYTES = CONTROL_FRAME_BYTES_MAX  # before the first region of a shared memory
READS_PER_EXPORTER_MAX = 64
CONNECTIONS_PER_PEER_MAX = 4
CONNECTIONS_PER_EXPORTER_MAX = CONNECTIONS_PER_PEER_MAX * WORKERS_MAX
CONNECTION_SILENCE_SECONDS_MAX = 60  # of one at rest, before its peer's host is taken to be gone
FRAME_MS_MAX = 5_000  # from a frame's first byte to its last, and from a connection to its hello
READ_MS_MAX = 600_000
WRITE_MS_MAX = READ_MS_MAX

# proving
MODEL_WALK_MOVES_MAX = 10_000  # of one random walk; a hundred is usual
SIMULATED_CALLBACKS_MAX = 400_000  # of one seed; a thousand is usual
