"""Limits for the content of an image file, and for the memory that decoding takes.

All limits are checked before Pillow opens a file. Each limit is several times as large as the files
of cameras, phones and editors need. With these limits, no file of 16 MiB takes more than three
times the processor time of the largest allowed image (`tests/bench/images.py`).
"""

__shared__ = True

MAX_PIXELS = 25_000_000
"""Maximum number of pixels (width times height) of an image."""

MAX_WEBP_PIXELS = 12_500_000
"""Maximum number of pixels of a WebP image.

The limit for WebP is lower than for other formats, because decoding WebP needs the most memory. A
WebP file of 50 bytes can claim to have 25 million pixels.
"""

MAX_SIDE_PX = 65_535
"""Maximum width and height in pixels, which is also the maximum of the JPEG and GIF formats.

The PNG decoder allocates two rows of pixels in addition to the image. In an image of one row, these
rows would need more memory than the image.
"""

MAX_SCANS = 30
"""Maximum number of scans in a progressive JPEG.

A typical JPEG has ten scans. Decoding a scan of a large image takes up to 0.1 s, so 16 MiB of empty
scans would take hours.
"""

MAX_SEGMENTS = 2_000
"""Maximum number of segments in a JPEG before the first scan.

A segment has up to 64 KiB. A photo with a depth map and a second image has up to 200 segments.
"""

MAX_TABLE_BYTES = 64 * 1024
"""Maximum size in bytes of all tables of a JPEG before the first scan.

The tables of a typical JPEG have 1 kB.
"""

MAX_CHUNKS = 20_000
"""Maximum number of chunks in a PNG or WebP.

A PNG of 16 MiB has 2,000 chunks of 8 KiB, which is the usual size. Pillow takes 3 µs for each
chunk.
"""

MAX_BLOCKS = 200_000
"""Maximum number of blocks in a GIF. A GIF of 16 MiB has 66,000 blocks of 255 bytes."""

MAX_FRAMES = 10_000
"""Maximum number of frames in an animation, enough for 5 minutes at 30 frames per second."""

MAX_METADATA_BYTES = 8 * 1024 * 1024
"""Maximum size in bytes of everything in an image file that is not needed for its pixels.

Phones store previews and depth maps of several MiB in an image. Metadata never reaches Pillow.
"""

MAX_EXIF_BYTES = 64 * 1024
"""Number of bytes of EXIF data that are searched for the orientation: the maximum in a JPEG."""

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Maximum size in bytes of a color profile, after decompression.

The profile of a printer has up to 3 MiB.
"""

PIXEL_BYTES = 12
"""Bytes of the memory budget that each pixel takes while a thumbnail is created.

Creating a thumbnail of a PNG with transparency takes 9 to 11 bytes per pixel. The other formats
need less memory, but reserve the same amount, because the reservation also limits how many images
are decoded at the same time.
"""

WEBP_PIXEL_BYTES = 20
"""Bytes of the memory budget per pixel of a WebP: opening a file takes 16 bytes, and a thumbnail
takes 19 bytes."""

FILE_COPIES = 3
"""Number of copies of a file's content in memory while the image is decoded."""
