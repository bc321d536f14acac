//! One header block: which format it is in, and its fields.
//!
//! Follows POSIX.1-1988 (ustar), GNU tar's manual ("Basic Tar Format") and star(4). The first 257 bytes are
//! the same everywhere; the magic number says what the rest means.

use std::ops::Range;

use super::error::Fault;
use super::number;

/// Bytes in a block: a header is one, and data is padded to whole ones.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE_FLAG: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ACCESS_TIME: Range<usize> = 345..357;
const GNU_CHANGE_TIME: Range<usize> = 357..369;

/// Dialect of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Without magic number: Unix V7.
    V7,
    /// POSIX, with or without extended headers.
    Ustar,
    /// Schily's tar before it took to POSIX.
    Star,
    /// GNU tar's own.
    Gnu,
}

/// The fields of one header, not yet joined with what extension headers say.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) type_flag: u8,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Bytes of data that follow, unless the type has none.
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Seconds since the Unix epoch.
    pub(super) mtime: i64,
    pub(super) device_major: i64,
    pub(super) device_minor: i64,
}

/// Reads `block`, which is not all zeros.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, Fault> {
    check_sum(block)?;
    let format = format(block);
    let (device_major, device_minor) = match format {
        Format::V7 => (0, 0),
        _ => (
            numeric(block, DEVICE_MAJOR, "device major number")?,
            numeric(block, DEVICE_MINOR, "device minor number")?,
        ),
    };
    Ok(Header {
        format,
        type_flag: block[TYPE_FLAG],
        path: path(block, format),
        link: string(&block[LINK_NAME]).to_vec(),
        size: numeric(block, SIZE, "size")?,
        mode: numeric(block, MODE, "mode")?,
        uid: numeric(block, UID, "uid")?,
        gid: numeric(block, GID, "gid")?,
        mtime: numeric(block, MTIME, "mtime")?,
        device_major,
        device_minor,
    })
}

fn format(block: &[u8; BLOCK]) -> Format {
    match (&block[MAGIC], &block[VERSION]) {
        (b"ustar\0", _) if &block[STAR_TRAILER] == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// The sum of all bytes, the sum's own field counted as spaces. POSIX adds unsigned bytes; some old
/// writers added signed ones.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Fault> {
    let expected = "a header whose check sum fits its bytes";
    let declared = number::octal(&block[CHECKSUM])
        .ok_or_else(|| Fault::bytes("check sum", "an octal number", &block[CHECKSUM]))?;
    let bytes = || {
        let outside = |index: &usize| !CHECKSUM.contains(index);
        block.iter().enumerate().filter(move |(index, _)| outside(index)).map(|(_, &byte)| byte)
    };
    let spaces = i64::from(b' ') * 8;
    let unsigned = spaces + bytes().map(i64::from).sum::<i64>();
    let signed = spaces + bytes().map(|byte| i64::from(byte.cast_signed())).sum::<i64>();
    if declared == unsigned || declared == signed {
        return Ok(());
    }
    Err(Fault::new("check sum", expected, format!("{declared} declared and {unsigned} computed")))
}

fn path(block: &[u8; BLOCK], format: Format) -> Vec<u8> {
    let prefix = match format {
        Format::Ustar => string(&block[USTAR_PREFIX]),
        Format::Star => string(&block[STAR_PREFIX]),
        Format::Gnu => mistaken_prefix(block),
        Format::V7 => &[],
    };
    let name = string(&block[NAME]);
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// GNU headers have times where ustar has the prefix. Go before 1.8 (Docker before 1.13) wrote a prefix
/// there nonetheless; it shows as times that are no numbers.
fn mistaken_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |range: Range<usize>| block[range.start] == 0 || number::field(&block[range]).is_some();
    if is_time(GNU_ACCESS_TIME) && is_time(GNU_CHANGE_TIME) {
        return &[];
    }
    let prefix = string(&block[USTAR_PREFIX]);
    if prefix.is_ascii() { prefix } else { &[] }
}

fn numeric(block: &[u8; BLOCK], range: Range<usize>, field: &'static str) -> Result<i64, Fault> {
    let bytes = &block[range];
    number::field(bytes).ok_or_else(|| Fault::bytes(field, "an octal or base-256 number of 64 bits", bytes))
}

/// A text field: up to its first zero byte, or all of it.
pub(super) fn string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}
