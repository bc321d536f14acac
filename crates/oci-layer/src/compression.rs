//! How a layer is compressed, and its decompression.
//!
//! The media type of a layer is a claim; the first bytes are what decides, as in containerd. Both formats may
//! be several members or frames one after another. Anything else behind them is an error.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A bare tar archive, or nothing that is known.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Largest window of a zstd frame that is accepted: 32 MiB, what BuildKit's highest level writes. `zstd
/// --ultra` has levels with up to 128 MiB, each decompression of which would take that much memory. RFC 8878
/// asks for no more than 8 MiB.
pub const MAX_ZSTD_WINDOW: usize = 32 << 20;

impl Compression {
    /// Bytes that [`Compression::detect`] wants to see.
    pub const MAGIC_LENGTH: usize = 4;

    /// What the first bytes of a layer say.
    #[must_use]
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1F, 0x8B, 0x08, ..] => Self::Gzip,
            // A frame, or a skippable frame in front of one.
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Bytes of the window that the first frame of a zstd stream asks for; `None` if `first` is cut short or
/// starts with a skippable frame.
#[must_use]
pub fn zstd_window(first: &[u8]) -> Option<u64> {
    // RFC 8878, 3.1.1.1: magic number, descriptor, window descriptor or content size.
    let rest = first.strip_prefix(&[0x28, 0xB5, 0x2F, 0xFD])?;
    let (&descriptor, rest) = rest.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let &window = rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary_id..)?;
    let (length, bias) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let size = rest.get(..length)?.iter().rev().fold(0u64, |size, &byte| size << 8 | u64::from(byte));
    size.checked_add(bias)
}

/// Decompresses a stream.
pub(crate) enum Decoder<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// A decoder of `input`, which is at its first byte. Frames of zstd with a window of more than
    /// `zstd_window` bytes, rounded up to a power of two, are refused when they are met.
    ///
    /// # Errors
    /// When the decoder's memory cannot be had.
    pub(crate) fn new(input: R, compression: Compression, zstd_window: usize) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(input),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(zstd_window.next_power_of_two().ilog2())?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(input) => input.read(bytes),
            Self::Gzip(decoder) => decoder.read(bytes),
            Self::Zstd(decoder) => decoder.read(bytes),
        }
    }
}
